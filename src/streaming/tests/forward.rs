use super::support::*;
use crate::streaming::context::Settings;
use futures_util::{SinkExt as _, StreamExt as _};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

const PROTOCOL: &[&str] = &["portforward.k8s.io"];

/// Answers "got N" when a client has ended its half after N bytes.
async fn counter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await?;
                socket.write_all(format!("got {}", all.len()).as_bytes()).await
            });
        }
    });
    port
}

/// Opens a pair: error stream `id`, data stream `id + 2`.
async fn pair<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Client<S>,
    id: u32,
    port: u16,
) {
    let (port, request) = (port.to_string(), id.to_string());
    for (id, kind) in [(id, "error"), (id + 2, "data")] {
        client.syn(id, &[("streamtype", kind), ("port", &port), ("requestid", &request)]).await;
        // Frames of earlier pairs may still arrive.
        while client.next().await != Got::Reply(id) {}
        if kind == "error" {
            client.data(id, 1, b"").await;
        }
    }
}

/// Reads a pair to its end: data, and the error stream's text.
async fn pair_end<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Client<S>,
    id: u32,
) -> (Vec<u8>, String) {
    let (mut data, mut words, mut left) = (Vec::new(), Vec::new(), 2);
    while left > 0 {
        match client.next().await {
            Got::Data(stream, piece) if stream == id + 2 => data.extend(piece),
            Got::Data(stream, piece) if stream == id => words.extend(piece),
            Got::Fin(stream) | Got::Rst(stream, _) if stream == id || stream == id + 2 => left -= 1,
            other => panic!("{other:?}"),
        }
    }
    (data, String::from_utf8(words).unwrap())
}

#[tokio::test]
async fn a_thousand_pairs_one_after_the_other_with_half_closes() {
    let (node, port) = (node().await, counter().await);
    let mut client = node.spdy(&node.forward(&[]), PROTOCOL).await;
    for n in 0..1000 {
        let id = 4 * n + 1;
        pair(&mut client, id, port).await;
        client.data(id + 2, 1, &vec![0; n as usize]).await;
        assert_eq!(pair_end(&mut client, id).await, (format!("got {n}").into_bytes(), String::new()));
    }
}

#[tokio::test]
async fn many_pairs_at_once_and_large_ones() {
    let (node, port) = (node().await, counter().await);
    let mut client = node.spdy(&node.forward(&[]), PROTOCOL).await;
    let ids: Vec<u32> = (0..100).map(|n| 4 * n + 1).collect();
    for id in &ids {
        pair(&mut client, *id, port).await;
    }
    let big = vec![7; 1 << 20];
    for id in &ids {
        client.data(id + 2, 1, &big).await;
    }
    let mut answers = 0;
    while answers < ids.len() {
        if let Got::Data(_, data) = client.next().await {
            assert_eq!(data, b"got 1048576");
            answers += 1;
        }
    }
}

#[tokio::test]
async fn old_clients_without_request_ids_are_served() {
    let (node, port) = (node().await, counter().await);
    let mut client = node.spdy(&node.forward(&[]), PROTOCOL).await;
    let port = port.to_string();
    client.syn(1, &[("streamtype", "error"), ("port", &port)]).await;
    client.syn(3, &[("streamtype", "data"), ("port", &port)]).await;
    assert_eq!((client.next().await, client.next().await), (Got::Reply(1), Got::Reply(3)));
    client.data(3, 1, b"abc").await;
    assert_eq!(pair_end(&mut client, 1).await.0, b"got 3");
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_told_and_the_connection_lives_on() {
    let node = node().await;
    let mut client = node.spdy(&node.forward(&[]), PROTOCOL).await;
    for (n, headers) in [
        [("streamtype", "data"), ("port", "0")],
        [("streamtype", "data"), ("port", "65536")],
        [("streamtype", "data"), ("port", "http")],
        [("streamtype", "other"), ("port", "80")],
        [("x", "y"), ("port", "80")],
    ]
    .iter()
    .enumerate()
    {
        let id = 2 * u32::try_from(n).unwrap() + 1;
        client.syn(id, headers).await;
        assert_eq!(client.next().await, Got::Rst(id, 5), "{headers:?}");
    }
    // Nothing listens there any more.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    pair(&mut client, 101, closed).await;
    let (data, words) = pair_end(&mut client, 101).await;
    assert!(data.is_empty());
    assert!(words.starts_with(&format!("error forwarding port {closed} to pod pod, uid : ")), "{words}");
    // Two error streams for one request.
    client.syn(201, &[("streamtype", "error"), ("port", "80"), ("requestid", "7")]).await;
    assert_eq!(client.next().await, Got::Reply(201));
    client.syn(203, &[("streamtype", "error"), ("port", "80"), ("requestid", "7")]).await;
    assert_eq!(client.next().await, Got::Reply(203));
    let Got::Data(203, words) = client.next().await else { panic!("no words") };
    assert!(String::from_utf8(words).unwrap().contains("already"));
    assert_eq!(client.next().await, Got::Fin(203));
    let port = counter().await;
    pair(&mut client, 301, port).await;
    client.data(303, 1, b"x").await;
    assert_eq!(pair_end(&mut client, 301).await.0, b"got 1");
}

#[tokio::test]
async fn a_pair_of_one_is_given_up() {
    let node = node_with(Default::default(), Settings { creation: SOON, ..durations() }).await;
    let mut client = node.spdy(&node.forward(&[]), PROTOCOL).await;
    client.syn(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "7")]).await;
    assert_eq!(client.next().await, Got::Reply(1));
    let Got::Data(1, words) = client.next().await else { panic!("no words") };
    assert!(String::from_utf8(words).unwrap().contains("did not come in time"));
    assert_eq!(client.next().await, Got::Fin(1));
    client.ping(9).await;
    assert_eq!(client.next().await, Got::Ping(9), "the connection lives on");
}

#[tokio::test]
async fn a_reset_or_a_lost_client_closes_the_pods_connection() {
    let node = node().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = node.spdy(&node.forward(&[]), PROTOCOL).await;
    for (id, stage) in [(1, "reset"), (5, "full"), (9, "gone")] {
        pair(&mut client, id, port).await;
        let (mut inside, _) = listener.accept().await.unwrap();
        client.data(id + 2, 0, b"hello").await;
        let mut hello = [0; 5];
        inside.read_exact(&mut hello).await.unwrap();
        if stage == "full" {
            // Neither side reads: both directions are blocked when the reset arrives.
            let stuck = async {
                loop {
                    inside.write_all(&[0; 1000]).await.unwrap()
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(100), stuck).await;
        }
        match stage {
            "gone" => client.socket.shutdown().await.unwrap(),
            _ => client.control(3, 0, &[&(id + 2).to_be_bytes()[..], &[0, 0, 0, 5]].concat()).await,
        }
        let drained = async {
            let mut buffer = [0; 4096];
            while !matches!(inside.read(&mut buffer).await, Ok(0) | Err(_)) {}
        };
        let drain_client = async { while !matches!(client.next().await, Got::Closed | Got::Fin(_)) {} };
        let both = async {
            tokio::select! { () = drained => {}, () = async { drain_client.await; std::future::pending().await } => {} }
        };
        tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("{stage}"));
    }
}

#[tokio::test]
async fn the_tunnel_carries_the_same() {
    let (node, port) = (node().await, counter().await);
    let socket = node.websocket(&node.forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    // A plain byte stream on the client's side of the tunnel.
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (mut sink, mut stream) = socket.split();
    let (mut reading, mut writing) = tokio::io::split(theirs);
    let code = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) => writing.write_all(&data).await.unwrap(),
                Message::Close(frame) => return frame.map(|frame| u16::from(frame.code)),
                _ => {}
            }
        }
        None
    });
    tokio::spawn(async move {
        let mut buffer = [0; 777];
        while let Ok(n @ 1..) = reading.read(&mut buffer).await {
            sink.send(Message::binary(buffer[..n].to_vec())).await.unwrap();
        }
    });
    let mut client = Client::over(ours);
    for n in 0..20 {
        let id = 4 * n + 1;
        pair(&mut client, id, port).await;
        client.data(id + 2, 1, &vec![0; 50_000]).await;
        assert_eq!(pair_end(&mut client, id).await.0, b"got 50000");
    }
    let ending = tokio::spawn(node.server.end(PATIENCE));
    assert_eq!(code.await.unwrap(), Some(1000));
    drop(client);
    ending.await.unwrap();
}

#[tokio::test]
async fn websocket_channels_carry_the_ports_that_were_named() {
    let node = node().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut socket = node.websocket(&node.forward(&[port, closed]), "v4.channel.k8s.io").await;
    let (mut inside, _) = listener.accept().await.unwrap();
    let mut seen = std::collections::BTreeMap::<u8, Vec<u8>>::new();
    let mut take = |message: Message| {
        let data = message.into_data();
        seen.entry(data[0]).or_default().extend(&data[1..]);
        seen.clone()
    };
    socket.send(Message::binary(&b"\0ping"[..])).await.unwrap();
    let mut ping = [0; 4];
    inside.read_exact(&mut ping).await.unwrap();
    inside.write_all(b"pong").await.unwrap();
    drop(inside);
    let all = loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Close(_) => break take(Message::binary(&[9][..])),
            message => drop(take(message)),
        }
    };
    assert_eq!(ping, *b"ping");
    assert_eq!(all[&0], [&port.to_le_bytes()[..], b"pong"].concat());
    assert_eq!(all[&1], port.to_le_bytes());
    assert_eq!(all[&2], closed.to_le_bytes());
    assert!(String::from_utf8_lossy(&all[&3][2..]).contains("error forwarding port"));
}
