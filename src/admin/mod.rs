//! podwright's own gRPC service: what a person does with a node's images. Decodes, delegates to [`crate::images`], encodes.
//! Served beside CRI on the daemon's socket, or to one client in the same process while no daemon runs.

mod encode;
pub mod proto;
mod pull;
mod service;
mod verify;

pub use service::{routes, serve_one};
