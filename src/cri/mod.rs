//! The front door: decodes gRPC requests into the domain's words, delegates, encodes the answers.
//! tonic and prost types stop here.

mod checkpoint;
mod chunks;
mod connections;
mod deadline;
pub mod decode;
mod door;
mod encode;
mod events;
mod holding;
mod image;
mod info;
mod lists;
mod lookup;
mod pod_metrics;
pub mod proto;
mod runtime;
mod server;
mod stats;
mod status;
mod streaming;
mod watchdog;

pub use image::Image;
pub use runtime::Runtime;
pub use server::{ServeError, check_free, listen, serve};
pub use status::{image_status, status};
pub use watchdog::watch;
