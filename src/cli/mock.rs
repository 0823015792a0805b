//! `sluicegate mock`: the imitated API alone.

use std::io::ErrorKind;

use crate::mock::{self, MockArgs};

use super::Failure;

pub(super) async fn mock(args: MockArgs) -> Result<u8, Failure> {
    let listen = args.listen;
    match mock::run(args).await {
        Ok(()) => Ok(0),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied
            ) =>
        {
            Err(Failure::failed(format_args!(
                "the mock cannot listen on {listen}: {error}; choose another with --listen"
            )))
        }
        Err(error) => Err(Failure::failed(error)),
    }
}
