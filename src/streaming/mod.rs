//! Streams of exec, attach and port-forward, from the HTTP socket down to the process's own descriptors.
pub mod spdy;
