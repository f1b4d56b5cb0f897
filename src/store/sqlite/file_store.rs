//! Everything that works on an open data file.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::checkpoint;
use super::data_error::DataError;
use super::data_file::{DataConfig, DataFile, Purpose};
use super::export::{self, MoveState};
use super::prune::FilePruning;
use super::reader::Reader;
use super::walker;
use super::writer::{self, Queue, Writer};
use crate::health::Dependency;
use crate::store::EventRetention;

/// An open data file, with the one writer behind it.
#[derive(Debug)]
pub struct FileStore {
    file: DataFile,
    queue: Arc<Queue>,
}

impl FileStore {
    /// Opens the data file for this process alone. It is created if it does not exist. Events that touch up
    /// to `capacity` rows may wait to be counted.
    ///
    /// # Errors
    ///
    /// When the file cannot be used, or its content has been moved. It is then as it was before.
    pub async fn open(config: &DataConfig, capacity: usize) -> Result<Self, DataError> {
        let file = DataFile::open(config).await?;
        let state = export::state(&mut file.connect(Purpose::Read).await?).await;
        let (state, to) = state.map_err(|error| DataError::of_sqlite(&file.path, error))?;
        let path = file.path.clone();
        match state {
            MoveState::None | MoveState::Planned => {}
            MoveState::Begun => return Err(DataError::Moved { path, state: "is being moved", to }),
            MoveState::Done => return Err(DataError::Moved { path, state: "has been moved", to }),
        }
        Ok(Self { file, queue: Arc::new(Queue::new(capacity)) })
    }

    /// The absolute path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Where batches go to be counted.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer { queue: Arc::clone(&self.queue) }
    }

    /// Reads what is known about domains, over separate connections. There will be this many `readers`, and
    /// each looks up names over this many connections.
    #[must_use]
    pub fn reader(&self, readers: usize, look_ups_at_once: usize) -> Reader {
        Reader::new(self.file.path.clone(), readers, look_ups_at_once)
    }

    /// Makes this the threshold of the file. If it differs from the previous one, [`run`](Self::run)
    /// reclassifies all domains.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub async fn set_threshold(&self, threshold: u64) -> Result<(), DataError> {
        walker::set_threshold(&self.file, threshold).await
    }

    /// Counts, prunes, reclassifies and shortens the WAL for as long as it is polled. Nothing is counted
    /// without it.
    pub async fn run(&self, retention: &EventRetention, dependency: Dependency) {
        let turn = Mutex::default();
        let pruning = FilePruning::new(retention);
        tokio::join!(
            writer::write(&self.file, &self.queue, &turn, pruning, dependency),
            checkpoint::keep_short(&self.file, &turn),
            walker::walk(&self.file, &turn)
        );
    }

    /// Copies the WAL into the file, so that the file is complete by itself. A process that is killed leaves
    /// the WAL beside it, which the next start reads.
    pub async fn close(&self) {
        checkpoint::finish(&self.file).await;
    }
}
