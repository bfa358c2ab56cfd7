use super::client::{Client, Got};
use super::*;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LIMITS: Limits =
    Limits { streams: 4, stream_bytes: 1 << 10, held_bytes: 2 << 10, idle: Duration::from_secs(60) };

fn pair(limits: Limits, early: Bytes) -> (Client<tokio::io::DuplexStream>, Connection) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (reading, writing) = tokio::io::split(ours);
    let accept = |headers: &Headers| headers.get("port") != Some("0");
    (Client::new(theirs), open(Box::new(reading), Box::new(writing), early, limits, None, accept))
}

#[tokio::test]
async fn each_stream_is_answered_at_once_and_carries_data_both_ways() {
    let (mut client, mut server) = pair(LIMITS, Bytes::new());
    for id in [1, 3] {
        client.syn(id, &[("streamtype", "data")]).await;
        assert_eq!(client.next().await, Got::Reply(id));
    }
    let (mut one, mut three) = (server.accept().await.unwrap(), server.accept().await.unwrap());
    assert_eq!((one.id, three.id, one.headers.get("streamType")), (1, 3, Some("data")));
    client.data(3, 0, b"he").await;
    client.data(3, 1, b"llo").await;
    let mut got = Vec::new();
    while let Some(data) = three.reader.next().await.unwrap() {
        got.extend(data);
    }
    assert_eq!(got, b"hello");
    one.writer.send(b"world").await.unwrap();
    one.writer.finish().await.unwrap();
    assert_eq!(client.next().await, Got::Data(1, b"world".to_vec()));
    assert_eq!(client.next().await, Got::Fin(1));
    client.data(1, 1, b"").await;
    assert_eq!(one.reader.next().await.unwrap(), None);
    assert_eq!(server.open_streams(), 2);
    drop(one);
    drop(three.reader);
    assert_eq!(server.open_streams(), 1);
    drop(three.writer);
    assert_eq!(client.next().await, Got::Rst(3, 5), "our half was open");
    assert_eq!(server.open_streams(), 0);
}

#[tokio::test]
async fn bytes_read_with_the_handshake_are_part_of_the_connection() {
    let mut frame = vec![0x80, 3, 0, 6, 0, 0, 0, 4];
    frame.extend([0, 0, 0, 9, 0x80, 3]);
    let (mut client, _server) = pair(LIMITS, Bytes::from(frame));
    client.socket.write_all(&[0, 6, 0, 0, 0, 4, 0, 0, 0, 11]).await.unwrap();
    assert_eq!(client.next().await, Got::Ping(9));
    assert_eq!(client.next().await, Got::Ping(11));
}

#[tokio::test]
async fn what_must_be_ignored_is_ignored() {
    let (mut client, mut server) = pair(LIMITS, Bytes::new());
    client.control(4, 0, &[0, 0, 0, 0]).await;
    client.control(9, 0, &[0; 8]).await;
    client.ping(2).await;
    client.syn(1, &[("a", "b")]).await;
    let block = client.deflater.block(&[("c", "d")]);
    client.control(8, 0, &[&[0, 0, 0, 1], &block[..]].concat()).await;
    client.syn(3, &[("e", "f")]).await;
    assert_eq!(client.next().await, Got::Reply(1));
    assert_eq!(client.next().await, Got::Reply(3));
    drop(server.accept().await);
    assert_eq!(client.next().await, Got::Rst(1, 5));
    // Late data of a stream that has ended here.
    client.data(1, 0, b"late").await;
    client.ping(5).await;
    assert_eq!(client.next().await, Got::Ping(5));
}

#[tokio::test]
async fn wrong_streams_are_refused_and_the_connection_lives_on() {
    let (mut client, server) = pair(LIMITS, Bytes::new());
    client.syn(5, &[("a", "b")]).await;
    assert_eq!(client.next().await, Got::Reply(5));
    for (id, flags, headers, status) in [
        (5, 0, ("a", "b"), 1),
        (3, 0, ("a", "b"), 1),
        (6, 0, ("a", "b"), 1),
        (7, 2, ("a", "b"), 1),
        (7, 0, ("port", "0"), 5),
    ] {
        client.syn_flags(id, flags, &[headers]).await;
        assert_eq!(client.next().await, Got::Rst(id, status), "{id} {flags} {headers:?}");
    }
    client.data(99, 0, b"x").await;
    assert_eq!(client.next().await, Got::Rst(99, 2));
    // A flood: refused from the fifth on; the connection keeps nothing of those.
    for n in 0..500 {
        client.syn(9 + 2 * n, &[("a", "b")]).await;
        let expected = if n < 3 { Got::Reply(9 + 2 * n) } else { Got::Rst(9 + 2 * n, 3) };
        assert_eq!(client.next().await, expected);
    }
    assert_eq!(server.open_streams(), 4);
}

#[tokio::test]
async fn broken_protocol_ends_the_connection_with_a_goaway() {
    for (bytes, says) in [
        (&[0x80, 2, 0, 1, 0, 0, 0, 20][..], "version"),
        (&[0x80, 3, 0, 5, 0, 0, 0, 0], "kind"),
        (&[0x80, 3, 0, 6, 0, 0, 0, 8], "length"),
        (&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], "length"),
        (&[0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'x', b'y'], "zlib"),
    ] {
        let (mut client, mut server) = pair(LIMITS, Bytes::new());
        client.socket.write_all(bytes).await.unwrap();
        assert_eq!(client.next().await, Got::GoAway(0, 1));
        assert_eq!(client.next().await, Got::Closed);
        let error = server.ended().await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(server.accept().await.is_none());
    }
}

#[tokio::test]
async fn an_inflated_block_ends_the_connection() {
    let (mut client, mut server) = pair(LIMITS, Bytes::new());
    let bomb = client.deflater.raw(&vec![0; 8 << 20]);
    assert!(bomb.len() < 16 << 10);
    client.control(1, 0, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &bomb[..]].concat()).await;
    assert_eq!(client.next().await, Got::GoAway(0, 1));
    assert!(server.ended().await.unwrap_err().to_string().contains("64 KiB"));
}

#[tokio::test]
async fn a_client_is_read_no_further_than_the_limit_until_its_data_is_taken() {
    let (ours, theirs) = tokio::io::duplex(16);
    let (reading, writing) = tokio::io::split(ours);
    let mut server = open(Box::new(reading), Box::new(writing), Bytes::new(), LIMITS, None, |_| true);
    let mut client = Client::new(theirs);
    client.syn(1, &[("a", "b")]).await;
    assert_eq!(client.next().await, Got::Reply(1));
    let mut stream = server.accept().await.unwrap();
    let sent = vec![7; 100 << 10];
    let expected = sent.clone();
    let mut sending = tokio::spawn(async move {
        client.data(1, 1, &sent).await;
        client
    });
    // The receiver takes nothing: the sender must block.
    let stuck = tokio::time::timeout(Duration::from_millis(100), &mut sending).await;
    assert!(stuck.is_err());
    let mut got = Vec::new();
    while let Some(data) = stream.reader.next().await.unwrap() {
        assert!(data.len() <= LIMITS.stream_bytes);
        got.extend(data);
    }
    assert_eq!(got, expected);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_its_data_is_stuck() {
    let (ours, theirs) = tokio::io::duplex(16 << 10);
    let (reading, writing) = tokio::io::split(ours);
    let hangup: shared::Hangup = Box::new(|| true);
    let mut server = open(Box::new(reading), Box::new(writing), Bytes::new(), LIMITS, Some(hangup), |_| true);
    let mut client = Client::new(theirs);
    client.syn(1, &[("a", "b")]).await;
    let stream = server.accept().await.unwrap();
    client.data(1, 0, &[0; 2 << 10]).await;
    assert!(matches!(server.ended().await, Err(SpdyError::Gone)));
    assert!(stream.writer.is_reset());
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_read_no_further() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let (reading, writing) = tokio::io::split(ours);
    let _server = open(Box::new(reading), Box::new(writing), Bytes::new(), LIMITS, None, |_| true);
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    let flood = async {
        for _ in 0..1_000_000 {
            theirs.write_all(&ping).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err());
    // It continues as soon as the receiver reads.
    let mut answer = [0; 12];
    theirs.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, ping);
}

#[tokio::test]
async fn silence_ends_the_connection_and_a_ping_does_not() {
    let (mut client, mut server) = pair(Limits { idle: Duration::from_millis(400), ..LIMITS }, Bytes::new());
    for id in 0..20 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        client.ping(2 * id + 1).await;
        assert_eq!(client.next().await, Got::Ping(2 * id + 1));
    }
    assert!(matches!(server.ended().await, Err(SpdyError::Idle(_))));
}

#[tokio::test]
async fn resets_reach_both_sides() {
    let (mut client, mut server) = pair(LIMITS, Bytes::new());
    client.syn(1, &[("a", "b")]).await;
    let mut stream = server.accept().await.unwrap();
    assert_eq!(client.next().await, Got::Reply(1));
    client.control(3, 0, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
    assert!(matches!(stream.reader.next().await, Err(SpdyError::Reset)));
    assert!(matches!(stream.writer.send(b"x").await, Err(SpdyError::Reset)));
    drop(stream);
    client.ping(1).await;
    assert_eq!(client.next().await, Got::Ping(1), "a reset is not answered by a reset");
}

#[tokio::test]
async fn closing_says_goaway_and_waits_for_the_client() {
    let (mut client, mut server) = pair(LIMITS, Bytes::new());
    client.syn(1, &[("a", "b")]).await;
    let stream = server.accept().await.unwrap();
    stream.writer.finish().await.unwrap();
    drop(stream);
    let closing = tokio::spawn(server.close(Duration::from_secs(60)));
    assert_eq!(client.next().await, Got::Reply(1));
    assert_eq!(client.next().await, Got::Fin(1));
    assert_eq!(client.next().await, Got::GoAway(1, 0));
    assert_eq!(client.next().await, Got::Closed);
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_resets_its_streams() {
    let (mut client, mut server) = pair(LIMITS, Bytes::new());
    client.syn(1, &[("a", "b")]).await;
    let mut stream = server.accept().await.unwrap();
    drop(client);
    assert!(matches!(stream.reader.next().await, Err(SpdyError::Reset)));
    assert!(server.accept().await.is_none());
    drop(stream);
    assert_eq!(server.open_streams(), 0);
}
