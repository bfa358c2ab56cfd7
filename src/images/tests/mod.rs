//! Pulls against an in-process registry with faults, and against Debian's docker-registry. Need root, as unpacking does.

mod credentials;
mod docker_registry;
mod faults;
mod fixture;
mod full;
mod hostile;
mod mirrors;
mod server;
mod sharing;
