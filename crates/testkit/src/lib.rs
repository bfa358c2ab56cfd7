//! The foundation of podwright's tests, `make run` and the benchmarks.
//!
//! Owns: images built entry by entry ([`image`]), the stand-ins for the images
//! that the conformance suite names ([`stand_ins`]), a loopback registry
//! ([`registry`]), a node in a directory ([`scratch`]), the daemon run on it
//! ([`daemon`]) and the list of what a test left behind ([`ledger`]).
//!
//! It never depends on the daemon's crate: it knows the daemon only as a binary,
//! a configuration file and a socket, as a node's owner does.

pub mod certs_d;
pub mod daemon;
mod host_ports;
pub mod http;
pub mod image;
pub mod ledger;
pub mod programs;
pub mod registry;
pub mod scratch;
mod shared;
pub mod stand_ins;
pub mod teardown;
pub mod wait;

pub use daemon::Daemon;
pub use image::{
    Artifact, Compression, Entry, FilesBuilder, Format, Image, ImageBuilder, Index, Layer, LayerBuilder,
};
pub use ledger::{Ledger, assert_same};
pub use programs::Programs;
pub use registry::Registry;
pub use scratch::{CgroupDriver, Options, Scratch};
pub use wait::{patience, wait_for};
