//! What all commands in containers share: their process files, and the memory for their output.

use super::output::OutputBudget;
use super::process_file::ProcessFiles;
use crate::config::Config;

/// All of it.
#[derive(Debug)]
pub struct Execs {
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
            files: ProcessFiles::default(),
            outputs: OutputBudget::new(config.containers.exec_memory_bytes),
        }
    }
}
