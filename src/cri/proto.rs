//! The generated CRI v1 types. They stop at `cri`: nothing below it names them.
#![allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("runtime.v1");
