//! podwright's own gRPC services: what a person does with a node's images, and what the daemon says of itself. Decodes,
//! delegates, encodes. Served beside CRI on the daemon's socket; that of images also to one client in the same process while
//! no daemon runs.

mod encode;
mod node;
pub mod proto;
mod pull;
mod service;
mod verify;

pub use node::About;
pub use service::{routes, serve_one};
