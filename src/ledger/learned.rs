//! What was learned of each model's run times, in whatever form the learner gives it.

use super::{Error, Ledger, execute};

pub(super) const STEP: &str = "
CREATE TABLE learned (
    model   TEXT PRIMARY KEY,
    data    BLOB NOT NULL,
    wall_ms INTEGER NOT NULL
) STRICT;
";

/// Callers name models: the latest stay.
const MOST_MODELS: u32 = 1_000;

impl Ledger {
    /// Everything, by model.
    pub(crate) fn learned(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.load(|tx| {
            let mut statement = tx.prepare("SELECT model, data FROM learned")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// Keeps what is known of some models now.
    pub(crate) fn save_learned(&self, models: Vec<(String, Vec<u8>)>) {
        let now = self.now();
        self.post(move |tx| {
            for (model, data) in models {
                execute(tx, "INSERT OR REPLACE INTO learned VALUES (?, ?, ?)", (model, data, now.wall_ms))?;
            }
            let sql = "DELETE FROM learned WHERE model IN \
                       (SELECT model FROM learned ORDER BY wall_ms DESC LIMIT -1 OFFSET ?)";
            execute(tx, sql, [MOST_MODELS]).map(drop)
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::ledger::tests::{Dir, memory};

    #[test]
    fn it_survives_and_is_bounded() {
        let dir = Dir::new();
        let ledger = dir.open().expect("new");
        ledger.save_learned(vec![("a".into(), vec![1]), ("b".into(), vec![2])]);
        ledger.save_learned(vec![("a".into(), vec![3])]);
        ledger.close();
        let mut learned = dir.open().expect("again").learned().expect("readable");
        learned.sort();
        assert_eq!(learned, [("a".to_owned(), vec![3]), ("b".to_owned(), vec![2])]);

        let ledger = memory();
        ledger.save_learned((0..2_000).map(|n| (format!("model-{n}"), vec![])).collect());
        assert_eq!(ledger.learned().expect("readable").len(), 1_000);
    }
}
