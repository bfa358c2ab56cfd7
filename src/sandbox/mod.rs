//! The domain of pods: sandboxes and their containers, from request to removal and through restarts of the daemon.
//!
//! In storeys; an import points down only (`tests/architecture.rs`): `words` (states, rules, errors; pure) and `spec`
//! (OCI configurations; pure), `acts` (what is done), `checkpoint`, `life` (tasks, index, recovery). Never speaks gRPC,
//! never runs a program itself: `host` has the mechanisms.

mod acts;
mod checkpoint;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod life;
mod offload;
pub mod spec;
mod words;

pub use acts::exec::Output;
pub use acts::execs::Execs;
pub use acts::handlers::Handlers;
pub use acts::metrics::PodMetrics;
pub use acts::node::Node;
pub use acts::output::OutputHold;
pub use acts::places::Places;
pub use acts::pod_cgroups::PodCgroups;
pub use acts::records::Records;
pub use acts::session::{AttachEnd, AttachSession, AttachStream, ExecSession, ExecStream, ExitStatus};
pub use acts::trials::{TrialNamespace, UserNamespaces};
pub use acts::writable::{Measured, WritableLayers};
pub use life::announce::{Announcement, Announcer, Happening, MAX_SUBSCRIBERS, Overrun, Subscription};
pub use life::conditions::{Condition, conditions};
pub use life::manager::Manager;
pub use life::recover::recover;
pub use words::checkpoint_error::CheckpointError;
pub use words::error::SandboxError;
pub use words::record::{PodLimits, RecordError};
pub use words::snapshot::{ContainerSnapshot, PodSnapshot};
pub use words::state::{ContainerState, Exit, ExitReason, SandboxState};
pub use words::volumes::VolumeError;
