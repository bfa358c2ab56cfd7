//! What is said of pods: states, rules, snapshots, errors. Values and pure functions; never any I/O.

pub(super) mod checkpoint_error;
pub(super) mod error;
pub(super) mod machine;
pub(super) mod snapshot;
pub(super) mod state;
pub(super) mod tally;
