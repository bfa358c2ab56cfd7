//! What all commands in containers share: who waits for their end, their process files, the memory for their output.

use super::output::OutputBudget;
use super::process_file::ProcessFiles;
use crate::config::Config;
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::oneshot;

/// All of it.
#[derive(Debug)]
pub struct Execs {
    /// Execs whose end is awaited.
    pub(in crate::sandbox) waiters: ExecWaiters,
    /// Process files of commands that are being started.
    pub(in crate::sandbox) files: ProcessFiles,
    /// Memory for the output of ExecSync.
    pub(in crate::sandbox) outputs: OutputBudget,
}

impl Execs {
    /// As configured.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            waiters: ExecWaiters::default(),
            files: ProcessFiles::default(),
            outputs: OutputBudget::new(config.containers.exec_memory_bytes),
        }
    }
}

/// Waiters for an exec's end, by exec id. Locked briefly, never over an await.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct ExecWaiters(Mutex<HashMap<String, oneshot::Sender<i32>>>);

impl ExecWaiters {
    /// Waits for the end of `exec_id`; call it before the exec starts, since that may end at once.
    pub(in crate::sandbox) fn expect(&self, exec_id: &str) -> oneshot::Receiver<i32> {
        let (tell, told) = oneshot::channel();
        self.lock().insert(exec_id.to_owned(), tell);
        told
    }

    /// Notifies the waiter, if there still is one.
    pub(in crate::sandbox) fn ended(&self, exec_id: &str, exit_code: i32) {
        if let Some(waiter) = self.lock().remove(exec_id) {
            // A waiter that went away needs no answer.
            let _ = waiter.send(exit_code);
        }
    }

    /// Waits no more.
    pub(in crate::sandbox) fn forget(&self, exec_id: &str) {
        self.lock().remove(exec_id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<i32>>> {
        // A panic while it was held leaves a map that is still whole.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
