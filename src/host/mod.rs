//! Mechanisms of the node: mounts, users, cgroups, devices, security facts, the OCI runtime.
//!
//! Owns every effect on the host that a pod needs. Never decides what a pod should get.

pub mod cgroups;
pub mod devices;
pub mod mountinfo;
pub mod oci;
pub mod rootfs;
pub mod security;
pub mod users;
