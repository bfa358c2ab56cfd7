//! What hangs, who waits, who is refused.

use super::jobs::{IN_ALL, LOST, PER_FILE_SYSTEM, PER_POD};
use super::mountinfo::MountEntry;
use super::*;
use std::sync::mpsc;

fn mount(point: &str, fstype: &str, minor: u32) -> MountEntry {
    let line = format!("22 1 0:{minor} / {point} rw - {fstype} x rw");
    mountinfo::parse(&line).remove(0)
}

fn asked(pod: &str, place: &str) -> Asked {
    Asked { pod: pod.to_owned(), places: vec![place.into()], limit: Duration::from_secs(30) }
}

impl Jobs {
    fn with(mut self, pod: &str, place: &str, age: Duration) -> Self {
        self.last += 1;
        let since = Instant::now().checked_sub(age).unwrap();
        let job = Job { patience: HANGS_AFTER, ..Job::new(&asked(pod, place), None, since) };
        self.running.insert(self.last, job);
        self
    }

    fn judged(&mut self, mounts: &[MountEntry], pod: &str, place: &str) -> Admission {
        let asked = asked(pod, place);
        self.look_up(mounts);
        let served: Vec<_> = asked.places.iter().map(|place| server(mounts, place)).collect();
        self.judge(&asked, &served, Instant::now())
    }

    /// What is said to a job that links lead to `place`.
    fn judged_on_the_way(&mut self, mounts: &[MountEntry], pod: &str, place: &str) -> Admission {
        self.last += 1;
        let number = self.last;
        self.running.insert(number, Job::new(&asked(pod, "/link"), None, Instant::now()));
        self.look_up(mounts);
        let place = Path::new(place);
        self.judge_way(number, place, server(mounts, place), Instant::now())
    }
}

fn mounts() -> Vec<MountEntry> {
    vec![
        mount("/", "ext4", 1),
        mount("/nfs/a", "nfs4", 2),
        mount("/nfs/b", "nfs4", 2),
        mount("/fuse", "fuse.x", 3),
    ]
}

#[test]
fn what_hangs_is_refused_with_all_of_its_file_system_and_nothing_else() {
    let long = HANGS_AFTER * 2;
    let mut jobs = Jobs::default().with("p1", "/nfs/a/x", long).with("p2", "/link", long);
    let mut judge = |place| jobs.judged(&mounts(), "new", place);
    for place in ["/nfs/a/x", "/nfs/b/other", "/link", "/link/below"] {
        assert!(matches!(judge(place), Admission::Refuse(ForeignError::Hangs { .. })), "{place}");
    }
    for place in ["/fuse/y", "/linked", "/", "/var"] {
        assert!(matches!(judge(place), Admission::Go), "{place}");
    }
    let Admission::Refuse(error) = judge("/nfs/b") else { panic!() };
    let text = error.to_string();
    assert!(text.starts_with("/nfs/b is not looked at: a look at /nfs/a/x hangs since 10 s"), "{text}");
}

#[test]
fn a_pod_a_file_system_and_the_node_have_so_many() {
    let many = |n: usize, place: &dyn Fn(usize) -> (String, String)| {
        (0..n).map(place).fold(Jobs::default(), |jobs, (pod, at)| jobs.with(&pod, &at, Duration::ZERO))
    };
    let waits = |mut jobs: Jobs, mounts: &[MountEntry], pod, place| match jobs.judged(mounts, pod, place) {
        Admission::Wait { of, .. } => Some(of),
        Admission::Go | Admission::Refuse(_) => None,
    };
    let own = || many(PER_POD, &|_| ("p".into(), "/x".into()));
    assert_eq!(waits(own(), &mounts(), "p", "/y"), Some("of this pod"));
    assert_eq!(waits(own(), &mounts(), "q", "/y"), None);
    let one = || many(PER_FILE_SYSTEM, &|n| (format!("p{n}"), "/nfs/a".into()));
    assert_eq!(waits(one(), &mounts(), "q", "/nfs/b"), Some("on its file system"));
    assert_eq!(waits(one(), &mounts(), "q", "/fuse"), None);
    // As many file systems as threads: what is local has its own.
    let spread = || many(IN_ALL, &|n| (format!("p{n}"), format!("/m/{n}")));
    let fuse = |n| mount(&format!("/m/{n}"), "fuse", 10 + u32::try_from(n).unwrap());
    let all = [mounts(), (0..IN_ALL).map(fuse).collect()].concat();
    assert_eq!(waits(spread(), &all, "q", "/fuse"), Some("of this node"));
    assert_eq!(waits(spread(), &all, "q", "/x"), None);
}

#[tokio::test]
async fn who_waits_gets_an_answer_at_the_limit_and_the_thread_is_forgotten_when_it_is_back() {
    let foreign = Foreign::default();
    let (release, held) = mpsc::channel::<()>();
    let short = Asked { limit: Duration::from_millis(50), ..asked("p", "/some/where") };
    let hung = foreign.run(short.clone(), move |at| {
        at.at(0);
        let _ = held.recv();
    });
    let error = hung.await.unwrap_err();
    assert!(matches!(&error, ForeignError::Silent { path, .. } if path == Path::new("/some/where")));
    let refused = foreign.run(short.clone(), |_| ()).await.unwrap_err();
    assert!(matches!(refused, ForeignError::Hangs { .. }), "{refused}");
    assert!(foreign.run(asked("p", "/else/where"), |_| true).await.unwrap());
    let ended = foreign.0.ended.notified();
    drop(release);
    ended.await;
    foreign.run(short, |_| ()).await.unwrap();
}

#[tokio::test]
async fn a_job_that_waits_for_another_of_its_pod_goes_on_when_that_one_ends() {
    let foreign = Foreign::default();
    let hold = |_: usize| {
        let (release, held) = mpsc::channel::<()>();
        let foreign = foreign.clone();
        let job = async move { foreign.run(asked("p", "/x"), move |_| held.recv().is_err()).await };
        (release, tokio::spawn(job))
    };
    let mut held: Vec<_> = (0..PER_POD).map(hold).collect();
    while foreign.0.lock().running.len() < PER_POD {
        tokio::task::yield_now().await;
    }
    let short = Asked { limit: Duration::from_millis(20), ..asked("p", "/y") };
    assert!(matches!(foreign.run(short, |_| ()).await, Err(ForeignError::Busy { .. })));
    let waiting = foreign.clone();
    let waiting = tokio::spawn(async move { waiting.run(asked("p", "/y"), |_| 7).await.unwrap() });
    let (release, job) = held.remove(0);
    drop(release);
    assert!(job.await.unwrap().unwrap());
    assert_eq!(waiting.await.unwrap(), 7);
}

#[tokio::test]
async fn a_panic_is_told() {
    let outcome = Foreign::default().run(asked("p", "/x"), |_| -> () { panic!("on purpose") }).await;
    assert!(matches!(outcome, Err(ForeignError::Panicked { .. })));
}

#[test]
fn those_that_hang_take_nobodys_places_whatever_they_look_at() {
    let long = HANGS_AFTER * 2;
    let many = |count: usize| {
        (0..count).fold(Jobs::default(), |jobs, n| jobs.with(&format!("p{n}"), &format!("/links/{n}"), long))
    };
    // All of them on a local file system, as far as names tell.
    let mut jobs = many(IN_ALL * 3);
    assert!(matches!(jobs.judged(&mounts(), "new", "/var/volume"), Admission::Go));
    assert!(matches!(jobs.judged(&mounts(), "new", "/fuse/x"), Admission::Go));
    assert!(matches!(jobs.judged(&mounts(), "new", "/links/7"), Admission::Refuse(_)));
    // Too many: who has none that hangs, and looks at nothing of others', goes.
    let mut jobs = many(LOST);
    assert!(matches!(jobs.judged(&mounts(), "new", "/var/volume"), Admission::Go));
    for (pod, place) in [("new", "/fuse/x"), ("p7", "/var/volume")] {
        let refused = jobs.judged(&mounts(), pod, place);
        assert!(matches!(refused, Admission::Refuse(ForeignError::Lost { .. })), "{refused:?}");
    }
    // A pod of which all hang is told so, and does not wait.
    let mut jobs = (0..PER_POD).fold(Jobs::default(), |jobs, n| jobs.with("p", &format!("/links/{n}"), long));
    let refused = jobs.judged(&mounts(), "p", "/var/volume");
    assert!(
        matches!(refused, Admission::Refuse(ForeignError::Lost { of: "of this pod", .. })),
        "{refused:?}"
    );
}

#[test]
fn where_a_link_leads_is_judged_by_what_it_leads_to() {
    let mut jobs = Jobs::default().with("p1", "/nfs/a/x", HANGS_AFTER * 2);
    let refused = jobs.judged_on_the_way(&mounts(), "new", "/nfs/b/y");
    assert!(matches!(refused, Admission::Refuse(ForeignError::Hangs { .. })), "{refused:?}");
    assert!(matches!(jobs.judged_on_the_way(&mounts(), "new", "/fuse/y"), Admission::Go));
    assert!(matches!(jobs.judged_on_the_way(&mounts(), "new", "/var/y"), Admission::Go));
    let mut jobs = (0..PER_FILE_SYSTEM)
        .fold(Jobs::default(), |jobs, n| jobs.with(&format!("p{n}"), &format!("/nfs/a/{n}"), Duration::ZERO));
    let waits = jobs.judged_on_the_way(&mounts(), "new", "/nfs/b");
    assert!(matches!(waits, Admission::Wait { jobs: PER_FILE_SYSTEM, .. }), "{waits:?}");
}

#[tokio::test]
async fn work_that_says_so_does_not_hang_and_is_counted_for_its_pod_alone_when_nobody_waits() {
    let foreign = Foreign::default();
    let (release, held) = mpsc::channel::<()>();
    let short = Asked { limit: Duration::from_millis(50), ..asked("p", "/some/where") };
    let works = foreign.run(short, move |progress| {
        progress.works();
        let _ = held.recv();
    });
    assert!(matches!(works.await, Err(ForeignError::Silent { .. })));
    foreign.run(asked("q", "/some/where/below"), |_| ()).await.unwrap();
    // Until it is silent for long.
    for job in foreign.0.lock().running.values_mut() {
        job.since = Instant::now().checked_sub(HANGS_AFTER * 2).unwrap();
    }
    let refused = foreign.run(asked("q", "/some/where/below"), |_| ()).await.unwrap_err();
    assert!(matches!(refused, ForeignError::Hangs { .. }), "{refused}");
    let ended = foreign.0.ended.notified();
    drop(release);
    ended.await;
}

#[tokio::test]
async fn what_is_given_back_is_never_refused_and_holds_nobody() {
    let foreign = Foreign::default();
    let (release, held) = mpsc::channel::<()>();
    let short = Asked { limit: Duration::from_millis(50), ..asked("p", "/run/bundle/mapped-0") };
    let hangs = foreign.release(short, move |_| held.recv().is_err());
    assert!(hangs.await.unwrap().is_none());
    let again = asked("p", "/run/bundle/mapped-0");
    assert_eq!(foreign.release(again, |_| 7).await.unwrap(), Some(7));
    // Nor does it keep others from other places.
    foreign.run(asked("q", "/else/where"), |_| ()).await.unwrap();
    let ended = foreign.0.ended.notified();
    drop(release);
    ended.await;
}

#[tokio::test]
async fn a_job_apart_is_counted_and_answered_for_as_any_other_and_hands_files_over() {
    use std::os::fd::AsFd as _;
    let foreign = Foreign::default();
    let own = std::process::id();
    let (pid, files) = foreign
        .apart(asked("p", "/x"), |_, outbox| {
            outbox.put(std::fs::File::open("/proc/self/comm").unwrap().as_fd()).unwrap();
            std::process::id()
        })
        .await
        .unwrap();
    assert_ne!(pid, own);
    assert_eq!(files.len(), 1);
    let (release, held) = mpsc::channel::<()>();
    let short = Asked { limit: Duration::from_millis(50), ..asked("p", "/some/where") };
    let hung = foreign.apart(short.clone(), move |at, _| {
        at.at(0);
        let _ = held.recv();
    });
    assert!(matches!(hung.await, Err(ForeignError::Silent { .. })));
    assert!(matches!(foreign.apart(short.clone(), |_, _| ()).await, Err(ForeignError::Hangs { .. })));
    let ended = foreign.0.ended.notified();
    drop(release);
    ended.await;
    foreign.apart(short, |_, _| ()).await.unwrap();
    let panics = foreign.apart(asked("p", "/x"), |_, _| -> () { panic!("on purpose") }).await;
    assert!(matches!(panics, Err(ForeignError::Panicked { .. })));
}
