//! Frames between daemon and monitor as either takes them apart, the monitor's reading of its socket, and its cutting of
//! what containers write. The monitor is a program without a library: its files are compiled in.
#![no_main]

use podwright_monitor_proto::{
    Event, ExitRecord, FromMonitor, Launch, MonitorRecord, Reply, RequestFrame, SessionEnd, encode,
    take_frame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io::Write as _;
use std::os::unix::net::UnixStream;

#[allow(dead_code)]
#[path = "../../crates/monitor/src/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../../crates/monitor/src/record.rs"]
mod record;
#[allow(dead_code)]
#[path = "../../crates/monitor/src/rights.rs"]
mod rights;

/// As the monitor reads.
const READ_BYTES: usize = 4096;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((door, data)) = data.split_first() else { return };
    match door % 5 {
        0 => cuts(data),
        1 => socket(data),
        2 => messages(data),
        3 => requests(data),
        _ => lines(data),
    }
});

/// The same frames are found however the bytes come, and together they are the bytes.
fn cuts(data: &[u8]) {
    let all = |mut pieces: Box<dyn Iterator<Item = &[u8]> + '_>| {
        let (mut input, mut frames) = (Vec::new(), Vec::new());
        let ended = loop {
            match take_frame(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => match pieces.next() {
                    Some(piece) => input.extend_from_slice(piece),
                    None => break Some(input),
                },
                Err(_) => break None,
            }
        };
        (frames, ended)
    };
    let whole = all(Box::new(std::iter::once(data)));
    assert_eq!(all(Box::new(data.chunks(7))), whole);
    if let (frames, Some(rest)) = whole {
        assert_eq!(frames.iter().map(|frame| 4 + frame.len()).sum::<usize>() + rest.len(), data.len());
    }
}

/// The monitor's end of a connection.
fn socket(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket that does not block");
    theirs.set_nonblocking(true).expect("a socket that does not block");
    let sent = theirs.write(data).unwrap_or_default();
    drop(theirs);
    let (mut client, mut buffer, mut bytes) = (client::Client::new(1, ours.into()), [0; READ_BYTES], 0);
    while !client.is_gone() {
        client.read(&mut buffer);
        while let Some(frame) = client.next_frame() {
            bytes += 4 + frame.len();
            answer(&mut client, &frame);
        }
    }
    assert!(bytes <= sent);
}

/// As the monitor answers before it does anything.
fn answer(client: &mut client::Client, frame: &[u8]) {
    let id = match serde_json::from_slice::<RequestFrame>(frame) {
        Ok(request) => request.id,
        Err(_) => {
            let value: Option<serde_json::Value> = serde_json::from_slice(frame).ok();
            value.and_then(|value| value.get("id")?.as_u64()).unwrap_or_default()
        }
    };
    client.push(&FromMonitor::Reply { id, reply: Reply::Done }, Vec::new());
}

fn messages(data: &[u8]) {
    round_trip::<FromMonitor>(data);
    round_trip::<Event>(data);
    round_trip::<SessionEnd>(data);
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        assert!(reply.descriptors() <= 5);
    }
}

fn requests(data: &[u8]) {
    round_trip::<RequestFrame>(data);
    round_trip::<Launch>(data);
    round_trip::<MonitorRecord>(data);
    round_trip::<ExitRecord>(data);
}

/// What is read fits a frame, and comes out of it the same.
fn round_trip<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    let mut wire = encode(&value).expect("a frame");
    let frame = take_frame(&mut wire).expect("a frame").expect("a whole frame");
    assert!(wire.is_empty());
    assert_eq!(serde_json::from_slice::<T>(&frame).expect("what was written is read back"), value);
}

/// A container's output, cut anywhere, is in the log as it was; no record is longer than it may be.
fn lines(data: &[u8]) {
    let Some((max, data)) = data.split_first() else { return };
    let max = usize::from(*max).max(1);
    let whole = cut(data, data.len().max(1), max);
    assert_eq!(cut(data, 5, max), whole);
    let mut joined = Vec::new();
    for (tag, content) in &whole {
        assert!(content.len() <= max);
        joined.extend_from_slice(content);
        if *tag == record::Tag::Full {
            joined.push(b'\n');
        }
    }
    // One carriage return before a line's end is not content.
    let wanted = String::from_utf8_lossy(data).replace("\r\n", "\n");
    let joined = String::from_utf8_lossy(&joined).into_owned();
    assert_eq!(joined, wanted);
}

fn cut(data: &[u8], step: usize, max: usize) -> Vec<(record::Tag, Vec<u8>)> {
    let (mut out, mut tail) = (Vec::new(), Vec::new());
    let pieces = data.chunks(step).map(|piece| (piece, record::Pause::None));
    for (piece, pause) in pieces.chain([(&[][..], record::Pause::End)]) {
        tail.extend_from_slice(piece);
        let held = std::mem::take(&mut tail);
        let mut records = record::Records::new(&held, max, pause);
        for record in records.by_ref() {
            let end = record.bytes.len() - usize::from(record.terminated);
            out.push((record.tag, record.bytes[..end].to_vec()));
        }
        assert!(records.rest().len() <= max + 1);
        tail = records.rest().to_vec();
    }
    assert!(tail.is_empty());
    out
}
