//! End-to-end tests: the real daemon, monitor, OCI runtime, CNI plugins and registry, over the real socket, each on a
//! scratch node of its own that must leave nothing behind. They need root, and `make build` before.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy sees only #[test] functions as tests"
)]

mod apparmor;
mod bad_input;
mod cdi;
mod check;
mod checkpoint;
mod churn;
mod clock;
mod containers;
mod daemon;
mod deep_layers;
mod events;
mod faults;
mod frozen;
mod full;
mod handlers;
mod host_network;
mod hostile_images;
mod hung;
mod image_volumes;
mod images;
mod images_cli;
mod inner;
mod keys;
mod lifecycle;
mod log_paths;
mod lost_images;
mod mounts;
mod network;
mod null_device;
mod pods;
mod quota;
mod races;
mod restore;
mod settings;
mod signatures;
mod stats;
mod status;
mod streaming;
mod streams_many;
mod support;
mod survive;
mod undying;
mod unproved;
mod usage;
mod userns;
mod watchdog;
mod workers;
