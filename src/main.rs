//! Arguments, logging, runtime, signals, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let sources = sluicegate::config::Sources::of_process(sluicegate::config::Flags::default()).unwrap();
    let loaded = match sluicegate::config::load(&sources) {
        Ok(l) => l,
        Err(r) => {
            eprintln!("{r}");
            return ExitCode::from(2);
        }
    };
    sluicegate::config::prepare(&loaded.config).unwrap();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let server = match sluicegate::app::Server::start(&loaded.config).await {
            Ok(s) => s,
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::from(1);
            }
        };
        println!("ready {:?}", server.listen);
        tokio::signal::ctrl_c().await.unwrap();
        server.drain().await;
        ExitCode::SUCCESS
    })
}
