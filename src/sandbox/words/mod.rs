//! What is said of pods: states, rules, snapshots, errors. Values and pure functions; never any I/O.

pub(super) mod checkpoint_error;
pub(super) mod error;
pub(super) mod layout;
pub(super) mod machine;
pub(super) mod phase;
pub(super) mod reconcile;
pub(super) mod record;
pub(super) mod saved;
pub(super) mod snapshot;
pub(super) mod state;
pub(super) mod tally;
pub(super) mod volumes;
