//! podwright: a Kubernetes node agent that serves the CRI v1 runtime and image services.
//!
//! Modules in rank order, lowest first; an import never points up this list (`tests/architecture.rs`).

pub mod model;

pub mod config;

pub mod host;

pub mod images;

pub mod sandbox;

pub mod streaming;

pub mod metrics;

pub mod cri;

pub mod admin;

pub mod check;

pub mod daemon;

pub mod cli;
