//! Pulls against an in-process registry with faults, and against Debian's docker-registry. Need root, as unpacking does.

mod artifacts;
mod credentials;
pub(super) mod docker_registry;
mod faults;
pub(super) mod fixture;
mod full;
mod hostile;
mod lost;
mod mirrors;
mod reach;
mod rights;
pub(super) mod server;
mod sharing;
mod signatures;
mod verify;
