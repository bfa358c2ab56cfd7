mod abuse;
mod exec;
mod forward;
mod handshake;
mod stand_in;
mod support;
