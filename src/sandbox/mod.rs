//! The domain of pods: sandboxes and their containers, from request to removal and through restarts of the daemon.
//!
//! Owns their states (snapshots in `state`), the rules (`machine`), one task per pod (`pod`), the records (`record`)
//! and recovery (`recover`). Never speaks gRPC, never runs a program itself: `host` has the mechanisms.

mod announce;
mod bring_up;
mod checkpoint;
mod conditions;
mod container;
mod error;
mod exec;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod granted;
mod idmap;
mod launch;
mod machine;
mod manager;
mod metrics;
mod node;
mod output;
mod pod;
mod process_file;
mod record;
mod recover;
mod room;
mod root_dirs;
mod selinux;
mod session;
mod snapshot;
mod sources;
pub mod spec;
mod state;
mod stop;
mod tally;
mod user_namespaces;
mod volumes;
mod writable;

pub use announce::{Announcement, Announcer, Happening, MAX_SUBSCRIBERS, Overrun, Subscription};
pub use checkpoint::{CheckpointError, Checkpoints};
pub use conditions::{Condition, conditions};
pub use error::SandboxError;
pub use exec::Output;
pub use manager::Manager;
pub use metrics::PodMetrics;
pub use node::{ExecWaiters, Node};
pub use output::{OutputBudget, OutputHold};
pub use process_file::ProcessFiles;
pub use record::{PodLimits, RecordError, Records};
pub use recover::recover;
pub use session::{AttachEnd, AttachSession, AttachStream, ExecSession, ExecStream, ExitStatus};
pub use snapshot::{ContainerSnapshot, PodSnapshot};
pub use state::{ContainerState, Exit, ExitReason, SandboxState};
pub use user_namespaces::{TrialNamespace, UserNamespaces};
pub use volumes::VolumeError;
pub use writable::{Measured, WritableLayers};
