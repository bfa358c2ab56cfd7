//! podwright's own gRPC services: management of the node's images, and the daemon's state. Decodes, delegates, encodes.
//! Served beside CRI on the daemon's socket; that of images also to one client in the same process while no daemon
//! runs.

mod encode;
mod node;
pub mod proto;
mod pull;
mod service;
mod status;
mod verify;

pub use node::About;
pub use service::{routes, serve_one};
