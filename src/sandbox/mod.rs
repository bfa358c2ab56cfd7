//! Pods and their containers.

pub mod spec;
