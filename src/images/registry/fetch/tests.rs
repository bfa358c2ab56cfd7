use super::incoming::{MAX_BEFORE, turn};
use super::*;
use crate::images::tests::server::{End, Reply, Server};
use bytes::BytesMut;
use futures_util::FutureExt as _;
use http::StatusCode;
use http::header;
use std::collections::VecDeque;

fn client(fetcher: &Arc<Fetcher>, url: &Url) -> Client {
    let setup = ClientSetup {
        separate: false,
        skip_verify: false,
        connect_timeout: Duration::from_secs(20),
        proxy: None,
        roots: Vec::new(),
        identity: None,
        reach: Reach::Anywhere,
    };
    fetcher.client(url, setup).unwrap()
}

fn at(server: &Server) -> Url {
    Url::parse(&format!("http://127.0.0.1:{}/x", server.port)).unwrap()
}

async fn get(client: &Client, url: &Url) -> Result<Response, Failure> {
    client.send(&Method::GET, url, &HeaderMap::new(), b"").await
}

async fn body(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        all.extend(chunk);
    }
    Ok(all)
}

/// What is made of what a process says over a request's socket, after which it ends.
async fn heard(said: &[u8]) -> Result<Vec<u8>, Failure> {
    let (ours, theirs) = pair(SocketType::STREAM).unwrap();
    let mut theirs = UnixStream::from_std(theirs.into()).unwrap();
    let said = said.to_vec();
    let talk = tokio::spawn(async move { theirs.write_all(&said).await });
    let socket = UnixStream::from_std(ours.into()).unwrap();
    let area = lend::shared(wire::MEMORY).unwrap();
    let memory = lend::Shared::open_sparsely(area.as_fd(), 0, wire::MEMORY).unwrap();
    let answer = Incoming::new(socket, Arc::new(memory));
    let url = Url::parse("http://127.0.0.1:1/").unwrap();
    let response = answer.head(&Destination::new(url, Reach::Anywhere, Duration::ZERO)).await;
    let heard = match response {
        Ok(response) => body(response).await,
        Err(failure) => Err(failure),
    };
    // What is not heard is not waited for.
    talk.abort();
    heard
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    [&wire::frame(kind, content.len())[..], content].concat()
}

#[tokio::test]
async fn a_process_that_says_nonsense_breaks_one_answer() {
    let head = frame(wire::HEAD, &wire::encode_head(StatusCode::OK, &HeaderMap::new()).unwrap());
    let with = |rest: &[u8]| [&head[..], rest].concat();
    let whole = with(&[frame(wire::DATA, b"ab"), frame(wire::DATA, b"c"), frame(wire::END, b"")].concat());
    assert_eq!(heard(&whole).await.unwrap(), b"abc");
    let long = |kind, length: u32| [&[kind][..], &length.to_le_bytes()].concat();
    for said in [
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        vec![0; 64],
        vec![255; 64],
        long(wire::HEAD, u32::MAX),
        frame(wire::HEAD, &[0; 16]),
        frame(wire::HEAD, &[200, 0, 255]),
        frame(wire::DATA, b"x"),
        frame(wire::END, b""),
        long(wire::FAILED, u32::MAX),
        long(wire::CONNECT, 1 << 20),
        frame(wire::UNCONNECTED, b"x"),
        with(&head),
        with(&frame(wire::DATA, b"")),
        with(&long(wire::DATA, u32::MAX)),
        with(&long(wire::DATA, 256 * 1024 + 1)),
        with(&[&frame(wire::LENT, b"")[..], &[0]].concat()),
        with(&[&long(wire::LENT, 128 * 1024 + 1)[..], &[0]].concat()),
        with(&[&long(wire::LENT, 1)[..], &[wire::PLACES]].concat()),
        with(&frame(wire::END, b"x")),
        with(&frame(wire::UNCONNECTED, b"")),
    ] {
        let failure = heard(&said).await.unwrap_err();
        assert!(
            matches!(&failure, Failure::Process(text) if text == "it talks nonsense"),
            "{failure:?} of {said:?}"
        );
    }
    for at in 0..whole.len() - 1 {
        let failure = heard(&whole[..at]).await.unwrap_err();
        assert!(matches!(failure, Failure::Process(_)), "{failure:?} at {at}");
    }
    // Its words are shown as what does nothing.
    let failure = heard(&frame(wire::FAILED, b"a\x1b[31m\nb")).await.unwrap_err();
    assert_eq!(failure.to_string(), "request: a?[31m?b");
    let failure = heard(&with(&frame(wire::CONNECT, b"x"))).await.unwrap_err();
    assert_eq!(failure.to_string(), "connect: x");
}

/// Whoever has pieces for long gets others; who has done with them costs no new memory.
#[test]
fn buffers_are_used_again_when_nobody_has_bytes_of_them() {
    let (mut buffer, mut before, mut places) = (BytesMut::new(), VecDeque::new(), HashSet::new());
    let mut held = VecDeque::new();
    for _ in 0..100 {
        turn(&mut buffer, &mut before, 4096);
        buffer.resize(4096, 1);
        places.insert(buffer.as_ptr());
        held.push_back(buffer.split().freeze());
        if held.len() > MAX_BEFORE - 1 {
            held.pop_front();
        }
    }
    assert!(places.len() <= MAX_BEFORE + 1, "{}", places.len());
    assert!(held.iter().all(|piece| piece[..] == [1; 4096]));
}

/// Pieces in memory are copied when they are told of, and their places are given back.
#[tokio::test]
async fn bodies_come_through_memory_whole_and_in_order() {
    let content: Vec<u8> = (0..1_500_000u32).flat_map(u32::to_le_bytes).collect();
    let server = Server::start({
        let content = content.clone();
        move |_| Reply::new(200, content.clone())
    });
    let fetcher = Fetcher::new(&Arc::default(), "localhost");
    let (url, mut responses) = (at(&server), Vec::new());
    let client = client(&fetcher, &url);
    for _ in 0..16 {
        responses.push(get(&client, &url).await.unwrap());
    }
    // Those that are read last hold their places meanwhile, and the one that is dropped leaves them.
    drop(responses.remove(3));
    for response in responses {
        assert!(body(response).await.unwrap() == content);
    }
}

/// What a process that was taken over asks for, it gets only where its clients may lead.
#[tokio::test]
async fn a_process_that_asks_for_what_it_may_not_have_is_ended() {
    let nobody = [&wire::control(wire::WANTED, 9)[..], &1u32.to_le_bytes()].concat();
    for said in [&b""[..], b"?", &nobody, &wire::control(wire::WANTED, 0), &[255; 300]] {
        let (ours, theirs) = pair(SocketType::SEQPACKET).unwrap();
        let control = UnixDatagram::from_std(ours.into()).unwrap();
        let is_over = AtomicBool::new(false);
        let shared = Arc::new(Shared { control, is_over, destinations: Mutex::default() });
        let url = Url::parse("http://127.0.0.1:1/").unwrap();
        let destination = Destination::new(url, Reach::Anywhere, Duration::from_secs(1));
        shared.destinations().insert(0, Arc::new(destination));
        let (keeper, over) = mpsc::channel();
        if said.is_empty() {
            drop(theirs);
        } else {
            rustix::io::write(&theirs, said).unwrap();
        }
        hear(Arc::clone(&shared), keeper).await;
        assert!(shared.is_over() && over.recv().is_ok(), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_is_replaced_and_not_for_ever() {
    let server = Server::start(|_| Reply::new(200, "hello").with("location", "/y").with("x-other", "z"));
    let (fetcher, url) = (Fetcher::new(&Arc::default(), "localhost"), at(&server));
    let client = client(&fetcher, &url);
    let response = get(&client, &url).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers().get(header::LOCATION).unwrap(), "/y");
    assert_eq!(response.headers().len(), 2, "and its length: {response:?}");
    assert_eq!(body(response).await.unwrap(), b"hello");
    for _ in 1..MAX_STARTS {
        let running = fetcher.running().await;
        // It does not take nonsense either.
        running.send(b'?', 0, None).await.unwrap();
        while !running.shared.is_over() {
            tokio::task::yield_now().await;
        }
        drop(running);
        assert_eq!(body(get(&client, &url).await.unwrap()).await.unwrap(), b"hello");
    }
    let running = fetcher.running().await;
    running.send(b'?', 0, None).await.unwrap();
    while !running.shared.is_over() {
        tokio::task::yield_now().await;
    }
    let failure = get(&client, &url).await.unwrap_err();
    assert!(failure.to_string().contains("8 of them have ended"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_from_one_domain_leave_processes_to_others() {
    let common = Arc::<Common>::default();
    let mut held = Vec::new();
    for n in 0..OF_A_DOMAIN {
        let fetcher = Fetcher::new(&common, &format!("r{n}.drips.example:5000"));
        fetcher.running().await;
        held.push(fetcher);
    }
    let waits = Fetcher::new(&common, "drips.example");
    assert!(waits.running().now_or_never().is_none());
    Fetcher::new(&common, "other.example").running().await;
    held.pop();
    waits.running().await;
}

#[test]
fn the_domain_of_a_registry() {
    for (registry, domain) in [
        ("r.drips.example:5000", "drips.example"),
        ("r.drips.example", "drips.example"),
        ("localhost:5000", "localhost"),
        ("192.0.2.1:5000", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]:5000", "[2001:db8::1]"),
        ("[2001:db8::1]", "[2001:db8::1]"),
    ] {
        assert_eq!(domain_of(registry), domain, "{registry}");
    }
}

/// Also one whose body is longer than what is on the way, and one that nobody hears to its end.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_arrive_whole_and_broken_ones_are_told() {
    let long: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let sent = long.clone();
    let server = Server::start(move |ask| match ask.path.as_str() {
        "/broken" => Reply::new(200, sent.clone()).ends(End::BreakAt(1_000_000)),
        "/headers" => Reply::new(302, "").with("location", "x".repeat(70_000)),
        _ => Reply::new(200, sent.clone()),
    });
    let (fetcher, url) = (Fetcher::new(&Arc::default(), "localhost"), at(&server));
    let client = client(&fetcher, &url);
    let mut unheard = get(&client, &url).await.unwrap();
    assert!(unheard.chunk().await.unwrap().is_some());
    drop(unheard);
    assert!(body(get(&client, &url).await.unwrap()).await.unwrap() == long);
    let failure = body(get(&client, &url.join("/broken").unwrap()).await.unwrap()).await.unwrap_err();
    assert!(matches!(failure, Failure::Request(_)), "{failure:?}");
    let failure = get(&client, &url.join("/headers").unwrap()).await.unwrap_err();
    assert_eq!(failure.to_string(), "request: the headers of its answer are too long");
}

#[tokio::test(flavor = "multi_thread")]
async fn why_there_is_no_connection_is_told() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (fetcher, url) = (
        Fetcher::new(&Arc::default(), "localhost"),
        Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap(),
    );
    let failure = get(&client(&fetcher, &url), &url).await.unwrap_err();
    assert!(matches!(&failure, Failure::Connect(text) if text.contains("refused")), "{failure:?}");
    let server = Server::start(|_| Reply::new(200, ""));
    let url = Url::parse(&format!("https://127.0.0.1:{}/", server.port)).unwrap();
    let failure = get(&client(&fetcher, &url), &url).await.unwrap_err();
    assert!(matches!(failure, Failure::Connect(_)), "no TLS there: {failure:?}");
}

#[test]
fn proxies_that_are_spoken_to() {
    let url = |proxy: &str| proxy_url(proxy).map(String::from);
    assert_eq!(url("http://u:p@proxy.example:3128/").as_deref(), Some("http://proxy.example:3128/"));
    assert_eq!(url("proxy.example:3128").as_deref(), Some("http://proxy.example:3128/"));
    assert_eq!(url("https://proxy.example").as_deref(), Some("https://proxy.example/"));
    for none in ["::", "", "ftp://proxy.example", "socks5h://proxy.example"] {
        assert_eq!(url(none), None, "{none}");
    }
}

/// A server that answers the first connection with `piece` without end, or until nobody listens.
fn flood(piece: Vec<u8>) -> Url {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("http://{}/x", listener.local_addr().unwrap())).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        while stream.write_all(&piece).is_ok() {}
    });
    url
}

#[tokio::test]
async fn a_registry_that_sends_without_end_what_is_no_answer_is_given_up() {
    let url = flood(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100));
    let fetcher = Fetcher::new(&Arc::default(), "localhost");
    let client = client(&fetcher, &url);
    let heard = tokio::time::timeout(Duration::from_mins(2), get(&client, &url)).await;
    let failure = heard.unwrap().unwrap_err();
    assert!(failure.to_string().contains("much more than it answers with"), "{failure}");
}
