//! Mechanisms of the host: running programs, network and kernel for the domain.
//!
//! Modules here do not see each other, except `command` (for those that run programs), `mountinfo`, `offload`, and `walk`
//! with `remove` (trees).

pub mod blockio;
pub mod cdi;
pub mod cgroups;
pub mod command;
pub mod criu;
pub mod devices;
pub mod doorway;
pub mod foreign;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod interfaces;
pub mod kernel;
pub mod listeners;
pub mod lock;
pub mod monitor;
pub mod mountinfo;
pub mod netns;
pub mod network;
pub mod oci;
pub mod offload;
pub mod pidns;
pub mod processes;
pub mod quota;
pub mod remove;
pub mod rootfs;
pub mod security;
pub mod settings;
pub mod space;
pub mod usage;
pub mod users;
pub(crate) mod walk;
pub mod worker;
