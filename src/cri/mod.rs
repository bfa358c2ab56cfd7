//! The front door: decodes gRPC requests into the domain's words, delegates, encodes the answers.
//! tonic and prost types stop here.

pub mod proto;
