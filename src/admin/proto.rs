//! The generated types of podwright's own service. They stop at `admin` and its client, `cli`.
#![allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("podwright.admin.v1");

impl std::fmt::Debug for Credentials {
    /// The user, never the credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}
