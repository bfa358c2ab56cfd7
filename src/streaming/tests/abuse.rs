use super::support::*;
use crate::streaming::context::Settings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::SinkExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

const V4: &[&str] = &["v4.channel.k8s.io"];

async fn until_alive(node: &Node, count: usize) {
    let begun = async {
        while node.pods.alive.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.expect("processes begin");
}

#[tokio::test]
async fn a_client_may_vanish_at_every_stage() {
    let node = node().await;
    // Before its request, before its streams, between them, and while the process runs.
    drop(node.connect().await);
    drop(node.spdy(&node.exec(&["deaf"], PLAIN), V4).await);
    let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), V4).await;
    client.syn(ERROR, &[("streamtype", "error")]).await;
    drop(client);
    let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    until_alive(&node, 1).await;
    drop(client);
    node.quiet().await;
    // While output arrives that it does not read.
    let mut client = node.spdy(&node.exec(&["zeroes", "1000000000"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    assert!(matches!(client.next().await, Got::Data(STDOUT, _)));
    drop(client);
    node.quiet().await;
    // Over WebSocket: without a close frame, and with one.
    for goodbye in [false, true] {
        let mut socket = node.websocket(&node.exec(&["deaf"], PLAIN), "v5.channel.k8s.io").await;
        until_alive(&node, 1).await;
        if goodbye {
            socket.close(None).await.unwrap();
        }
        drop(socket);
        node.quiet().await;
    }
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_session() {
    let node = node_with(Default::default(), Settings { creation: SOON, ..durations() }).await;
    let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), V4).await;
    client.syn(ERROR, &[("streamtype", "error")]).await;
    client.syn(3, &[("streamtype", "resize")]).await;
    client.syn(5, &[("streamtype", "nonsense")]).await;
    client.syn(7, &[]).await;
    client.syn(9, &[("streamtype", "error")]).await;
    let ended = async { while !matches!(client.next().await, Got::GoAway(..)) {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(node.pods.alive.load(Ordering::SeqCst), 0, "nothing was started");
}

#[tokio::test]
async fn input_that_nobody_reads_is_held_to_the_limit_and_its_client_may_go() {
    let node = node().await;
    for websocket in [false, true] {
        let flood = async {
            let piece = vec![0; 100_000];
            if websocket {
                let mut socket = node.websocket(&node.exec(&["deaf"], PLAIN), "v5.channel.k8s.io").await;
                let message = [&[0], &piece[..]].concat();
                for _ in 0..1000 {
                    socket.send(Message::binary(message.clone())).await.unwrap();
                }
            } else {
                let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), V4).await;
                open(&mut client, PLAIN, false).await;
                for _ in 0..1000 {
                    client.data(STDIN, 0, &piece).await;
                }
            }
        };
        // 100 MB fit nowhere: the client must block. Dropping it makes it vanish.
        assert!(tokio::time::timeout(Duration::from_millis(700), flood).await.is_err());
        node.quiet().await;
    }
}

#[tokio::test]
async fn floods_of_small_frames_do_not_disturb_the_session() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["cat"], TTY), V4).await;
    open(&mut client, TTY, true).await;
    let (reading, mut writing) = client.socket.into_split();
    let sending = tokio::spawn(async move {
        let size = b"{\"Width\":80,\"Height\":24}";
        let mut frames = Vec::new();
        for id in 0..20_000u32 {
            frames.extend([0, 0, 0, 9, 0, 0, 0, 24]);
            frames.extend(size);
            frames.extend([0x80, 3, 0, 6, 0, 0, 0, 4]);
            frames.extend((2 * id + 1).to_be_bytes());
        }
        writing.write_all(&frames).await.unwrap();
        writing.write_all(b"\0\0\0\x03\x01\0\0\x05hello").await.unwrap();
        writing
    });
    let mut client = Client::over(tokio::io::join(reading, tokio::io::sink()));
    let (mut pings, mut out) = (0, Vec::new());
    loop {
        match client.next().await {
            Got::Ping(_) => pings += 1,
            Got::Data(STDOUT, data) => out.extend(data),
            Got::GoAway(..) => break,
            _ => {}
        }
    }
    // The end of input is typed into a terminal.
    assert_eq!((pings, out), (20_000, b"hello\x04".to_vec()));
    sending.await.unwrap();
}

#[tokio::test]
async fn a_flood_of_streams_is_refused_and_does_not_disturb_the_session() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["cat"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let mut refused = 0;
    for id in (9..20_009).step_by(2) {
        client.syn(id, &[("streamtype", "stdin")]).await;
        match client.next().await {
            Got::Rst(got, 3) if got == id => refused += 1,
            // The first four find room; nothing takes them.
            Got::Reply(got) if got == id => assert!(id < 17),
            Got::Rst(got, 5) if got < 17 => assert_eq!(client.next().await, Got::Reply(id)),
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 9_000, "{refused}");
    client.data(STDIN, 1, b"hello").await;
    assert_eq!(finish(&mut client).await.stdout, b"hello");
}

#[tokio::test]
async fn a_data_frame_of_the_greatest_length_is_carried_in_pieces() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["cat"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let (reading, mut writing) = client.socket.into_split();
    let sending = tokio::spawn(async move {
        writing.write_all(&[0, 0, 0, 3, 1, 0xff, 0xff, 0xff]).await.unwrap();
        writing.write_all(&vec![7; 0xff_ffff]).await.unwrap();
        writing
    });
    let mut client = Client::over(tokio::io::join(reading, tokio::io::sink()));
    let result = finish(&mut client).await;
    assert!(result.stdout.len() == 0xff_ffff && result.stdout.iter().all(|byte| *byte == 7));
    sending.await.unwrap();
}

/// The head of a client's frame with a zero mask.
fn head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first, 0xff];
    head.extend(length.to_be_bytes());
    head.extend([0; 4]);
    head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_websocket_messages_are_passed_on_and_not_held() {
    let node = node().await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let socket = node.websocket(&node.exec(&["cat"], PLAIN), "v5.channel.k8s.io").await;
        let mut socket = socket.into_inner();
        // A message of 4 GiB of which only a little arrives: what was sent is delivered before the message's end.
        socket.write_all(&head(0x82, 4 << 30)).await.unwrap();
        socket.write_all(b"\x00hello").await.unwrap();
        clients.push(socket);
    }
    for socket in &mut clients {
        let echoed = async {
            let mut came = Vec::new();
            while !came.ends_with(b"\x01hello") {
                came.push(socket.read_u8().await.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, echoed).await.expect("the message is held");
    }
    drop(clients);
    node.quiet().await;
    // A message that is not read stays within the limit of its channel.
    let socket = node.websocket(&node.exec(&["deaf"], PLAIN), "v5.channel.k8s.io").await;
    let mut socket = socket.into_inner();
    let flood = async {
        socket.write_all(&head(0x82, 4 << 30)).await.unwrap();
        let piece = vec![0; 100_000];
        for _ in 0..1000 {
            socket.write_all(&piece).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(700), flood).await.is_err());
    drop(socket);
    node.quiet().await;
}

#[tokio::test]
async fn base64_and_ends_of_channels_may_be_cut_anywhere() {
    let node = node().await;
    let socket = node.websocket(&node.exec(&["cat"], PLAIN), "base64.channel.k8s.io").await;
    let mut socket = socket.into_inner();
    for (number, byte) in b"0aGVsbG8=".iter().enumerate() {
        let first = u8::from(number == 0) | if number == 8 { 0x80 } else { 0 };
        socket.write_all(&head(first, 1)).await.unwrap();
        socket.write_all(&[*byte]).await.unwrap();
    }
    // It returns in as many pieces as `cat` read.
    let whole = async {
        let (mut text, mut decoded) = (Vec::new(), Vec::new());
        while decoded != b"hello" {
            text.push(socket.read_u8().await.unwrap());
            let parts = text.split(|byte| *byte == 0x81).skip(1).filter_map(|frame| frame.get(2..));
            decoded = parts.filter_map(|payload| STANDARD.decode(payload).ok()).flatten().collect();
        }
    };
    tokio::time::timeout(PATIENCE, whole).await.unwrap();
    drop(socket);
    node.quiet().await;
    let socket = node.websocket(&node.exec(&["cat"], PLAIN), "v5.channel.k8s.io").await;
    let mut socket = socket.into_inner();
    for (first, byte) in [(2, 0xff), (0x80, 0)] {
        socket.write_all(&head(first, 1)).await.unwrap();
        socket.write_all(&[byte]).await.unwrap();
    }
    // The end of its input is the end of `cat`.
    node.quiet().await;
}

#[tokio::test]
async fn wrong_messages_and_wrong_closes_end_a_websocket() {
    let node = node().await;
    for message in [Message::binary(&[0xff][..]), Message::binary(&[0xff, 0, 0][..]), Message::text("0text")]
    {
        let mut socket = node.websocket(&node.exec(&["deaf"], PLAIN), "v5.channel.k8s.io").await;
        until_alive(&node, 1).await;
        // The server may close before it has taken all of it.
        let _ = socket.send(message).await;
        node.quiet().await;
    }
    let mut socket = node.websocket(&node.exec(&["deaf"], PLAIN), "base64.channel.k8s.io").await;
    until_alive(&node, 1).await;
    socket.send(Message::text("0***")).await.unwrap();
    node.quiet().await;
}

#[tokio::test]
async fn an_idle_session_ends() {
    // Long enough for both to begin, on a busy machine too.
    let idle = Duration::from_millis(700);
    let node = node_with(Default::default(), Settings { idle, ..durations() }).await;
    let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let _socket = node.websocket(&node.exec(&["deaf"], PLAIN), "v5.channel.k8s.io").await;
    until_alive(&node, 2).await;
    node.quiet().await;
}

/// This process's descriptors of sockets and pipes that other tests cannot have opened: those of this server's port.
fn sockets_of(port: u16) -> usize {
    let port = format!(":{port:04X} ");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // Established, on either side.
    table.lines().filter(|line| line.contains(&port) && line.contains(" 01 ")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_at_once_leave_nothing() {
    let node = node().await;
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = node.spdy(&node.exec(&["cat"], PLAIN), V4).await;
        open(&mut client, PLAIN, false).await;
        clients.push(client);
    }
    until_alive(&node, 200).await;
    assert!(sockets_of(node.server.address().port()) >= 200);
    for client in &mut clients {
        client.data(STDIN, 1, b"bye").await;
    }
    for client in &mut clients {
        assert_eq!(finish(client).await.stdout, b"bye");
    }
    drop(clients);
    node.quiet().await;
    let port = node.server.address().port();
    let gone = async {
        while sockets_of(port) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("sockets are left");
}
