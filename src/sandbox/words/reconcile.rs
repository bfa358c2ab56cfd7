//! What becomes of a recorded pod and its containers, by what is seen of them: two pure tables.

use super::state::{ContainerState, Exit, Holdings, Init, NotReadyCause, SandboxState};
use crate::model::Timestamp;
use podwright_monitor_proto::ExitRecord;

/// What is seen of a pod's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum MonitorSeen {
    Alive,
    /// It cannot be told yet.
    Unknown,
    /// Its process has ended: that is proved.
    Dead,
    /// Dead, with everything else of the earlier boot.
    Rebooted,
}

/// What is seen of a container.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sandbox) enum ContainerSeen {
    /// The monitor says that the runtime is starting it.
    Starting,
    /// The monitor says it runs.
    Running(Init),
    /// The monitor or its exit record says how it ended.
    Ended(ExitRecord),
    /// Its monitor has not been heard yet.
    Silent,
    /// Its monitor answers, and has no such container: it never had one, or undid it.
    Unstarted,
    /// Its monitor is dead, and nobody knows of a process. Some: why not even an exit record tells.
    Nothing(Option<String>),
}

/// What is done with a container.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sandbox) enum Decision {
    Keep(ContainerState),
    /// Its creation did not finish: undo it.
    Undo,
}

pub(in crate::sandbox) fn decide_sandbox(recorded: Option<&SandboxState>, seen: MonitorSeen) -> SandboxState {
    let not_ready = |why, resources| SandboxState::NotReady { why, resources };
    match (recorded, seen) {
        (None | Some(SandboxState::Preparing), MonitorSeen::Rebooted) => {
            not_ready(NotReadyCause::Rebooted, Holdings::Held)
        }
        (
            None | Some(SandboxState::Preparing),
            MonitorSeen::Alive | MonitorSeen::Unknown | MonitorSeen::Dead,
        ) => not_ready(NotReadyCause::Interrupted, Holdings::Held),
        (Some(state @ SandboxState::Ready { .. }), MonitorSeen::Alive | MonitorSeen::Unknown) => {
            state.clone()
        }
        (Some(SandboxState::Ready { .. }), MonitorSeen::Dead) => {
            not_ready(NotReadyCause::MonitorLost, Holdings::Held)
        }
        (Some(SandboxState::Ready { .. }), MonitorSeen::Rebooted) => {
            not_ready(NotReadyCause::Rebooted, Holdings::Held)
        }
        (Some(state @ SandboxState::NotReady { .. }), _) => state.clone(),
    }
}

pub(in crate::sandbox) fn decide_container(
    recorded: Option<&ContainerState>,
    seen: &ContainerSeen,
    now: Timestamp,
) -> Decision {
    use ContainerState::{Created, Creating, Exited, Running, Starting};
    let lost = |started_at, unread: &Option<String>| {
        let mut told = "it ended while neither the daemon nor its monitor ran".to_owned();
        if let Some(why) = unread {
            told = format!("{told}, and {why}");
        }
        Decision::Keep(Exited { started_at, exit: Exit::unknown(&told, now) })
    };
    match (recorded, seen) {
        (Some(state @ Exited { .. }), _) => Decision::Keep(state.clone()),
        // What the monitor says of a process is true, whatever was or was not written of it.
        (_, ContainerSeen::Running(init)) => {
            let since = match recorded {
                Some(Running { since, .. }) => *since,
                _ => now,
            };
            Decision::Keep(Running { init: *init, since })
        }
        (_, ContainerSeen::Ended(record)) => {
            let exit = Exit::from_record(record);
            let started_at = match recorded {
                Some(Running { since, .. }) => *since,
                _ => exit.finished_at,
            };
            Decision::Keep(Exited { started_at: Some(started_at), exit })
        }
        // Its outcome is waited for by the pod's task.
        (_, ContainerSeen::Starting) => Decision::Keep(Starting),
        // As recorded, until the monitor says more.
        (None, ContainerSeen::Silent) => Decision::Keep(Creating),
        (Some(state), ContainerSeen::Silent) => Decision::Keep(state.clone()),
        (None | Some(Creating), ContainerSeen::Unstarted | ContainerSeen::Nothing(_)) => Decision::Undo,
        (Some(Created), ContainerSeen::Unstarted | ContainerSeen::Nothing(_)) => Decision::Keep(Created),
        // The daemon died before it asked, or the start failed and was undone: it may be started.
        (Some(Starting), ContainerSeen::Unstarted) => Decision::Keep(Created),
        (Some(Running { since, .. }), ContainerSeen::Unstarted) => {
            let exit = Exit::unknown("its monitor does not know it any more", now);
            Decision::Keep(Exited { started_at: Some(*since), exit })
        }
        (Some(Starting), ContainerSeen::Nothing(unread)) => lost(None, unread),
        (Some(Running { since, .. }), ContainerSeen::Nothing(unread)) => lost(Some(*since), unread),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::words::state::{ExitReason, ExitSource, NotReadyCause};

    const NOW: Timestamp = Timestamp(9);

    fn init() -> Init {
        Init { pid: 7, start_time: 70 }
    }

    fn ended() -> ContainerSeen {
        ContainerSeen::Ended(ExitRecord {
            version: 1,
            container_id: String::new(),
            pid: 7,
            exit_code: 3,
            signal: None,
            oom_killed: false,
            finished_at_ns: 5,
        })
    }

    #[test]
    fn sandboxes() {
        let ready = SandboxState::Ready { network: None };
        let not_ready = |why| SandboxState::NotReady { why, resources: Holdings::Held };
        let stopped = SandboxState::NotReady { why: NotReadyCause::Stopped, resources: Holdings::Released };
        use MonitorSeen::{Alive, Dead, Rebooted, Unknown};
        let table = [
            (None, Alive, not_ready(NotReadyCause::Interrupted)),
            (Some(SandboxState::Preparing), Dead, not_ready(NotReadyCause::Interrupted)),
            (Some(SandboxState::Preparing), Rebooted, not_ready(NotReadyCause::Rebooted)),
            (Some(ready.clone()), Alive, ready.clone()),
            (Some(ready.clone()), Unknown, ready.clone()),
            (Some(ready.clone()), Dead, not_ready(NotReadyCause::MonitorLost)),
            (Some(ready), Rebooted, not_ready(NotReadyCause::Rebooted)),
            (Some(stopped.clone()), Dead, stopped),
        ];
        for (recorded, seen, expected) in table {
            assert_eq!(decide_sandbox(recorded.as_ref(), seen), expected, "{recorded:?} {seen:?}");
        }
    }

    #[test]
    fn an_unfinished_creation_is_undone() {
        for recorded in [None, Some(ContainerState::Creating)] {
            for seen in [ContainerSeen::Nothing(None), ContainerSeen::Unstarted] {
                assert_eq!(decide_container(recorded.as_ref(), &seen, NOW), Decision::Undo);
            }
        }
    }

    /// Its record could not be written, or is lost: what the monitor says is true all the same.
    #[test]
    fn what_runs_is_never_undone() {
        for recorded in [None, Some(ContainerState::Creating), Some(ContainerState::Created)] {
            let decide = |seen| decide_container(recorded.as_ref(), &seen, NOW);
            let running = ContainerState::Running { init: init(), since: NOW };
            assert_eq!(decide(ContainerSeen::Running(init())), Decision::Keep(running));
            assert_eq!(decide(ContainerSeen::Starting), Decision::Keep(ContainerState::Starting));
            let Decision::Keep(ContainerState::Exited { exit, .. }) = decide(ended()) else { panic!() };
            assert_eq!(exit.code, 3);
            assert!(matches!(decide(ContainerSeen::Silent), Decision::Keep(_)));
        }
    }

    #[test]
    fn a_start_that_the_monitor_never_heard_of_may_be_asked_again() {
        let decision = decide_container(Some(&ContainerState::Starting), &ContainerSeen::Unstarted, NOW);
        assert_eq!(decision, Decision::Keep(ContainerState::Created));
    }

    #[test]
    fn an_exit_record_that_cannot_be_read_is_named() {
        let recorded = ContainerState::Running { init: init(), since: Timestamp(2) };
        let seen = ContainerSeen::Nothing(Some("its exit record x cannot be read: EIO".into()));
        let Decision::Keep(ContainerState::Exited { exit, .. }) =
            decide_container(Some(&recorded), &seen, NOW)
        else {
            panic!("not exited");
        };
        assert!(exit.message.ends_with("its exit record x cannot be read: EIO"), "{}", exit.message);
    }

    #[test]
    fn what_still_runs_is_kept_with_its_start() {
        let recorded = ContainerState::Running { init: init(), since: Timestamp(2) };
        let seen = ContainerSeen::Running(init());
        assert_eq!(decide_container(Some(&recorded), &seen, NOW), Decision::Keep(recorded));
    }

    #[test]
    fn an_end_meanwhile_has_its_true_code_and_time() {
        let recorded = ContainerState::Running { init: init(), since: Timestamp(2) };
        let Decision::Keep(ContainerState::Exited { started_at, exit }) =
            decide_container(Some(&recorded), &ended(), NOW)
        else {
            panic!("not exited");
        };
        assert_eq!(started_at, Some(Timestamp(2)));
        assert_eq!((exit.code, exit.reason, exit.finished_at), (3, ExitReason::Error, Timestamp(5)));
        assert_eq!(exit.source, ExitSource::Monitor);
    }

    #[test]
    fn an_end_that_nobody_saw_is_told_as_unknown() {
        for recorded in
            [ContainerState::Starting, ContainerState::Running { init: init(), since: Timestamp(2) }]
        {
            let decision = decide_container(Some(&recorded), &ContainerSeen::Nothing(None), NOW);
            let Decision::Keep(ContainerState::Exited { exit, .. }) = decision else { panic!("not exited") };
            assert_eq!(
                (exit.code, exit.reason, exit.source),
                (255, ExitReason::Unknown, ExitSource::Assumed)
            );
        }
    }

    #[test]
    fn of_a_silent_monitor_everything_is_kept_as_recorded() {
        for recorded in [
            ContainerState::Created,
            ContainerState::Starting,
            ContainerState::Running { init: init(), since: Timestamp(2) },
        ] {
            let decision = decide_container(Some(&recorded), &ContainerSeen::Silent, NOW);
            assert_eq!(decision, Decision::Keep(recorded));
        }
        let unwritten = decide_container(None, &ContainerSeen::Silent, NOW);
        assert_eq!(unwritten, Decision::Keep(ContainerState::Creating));
    }

    #[test]
    fn a_start_under_way_goes_on() {
        let decision = decide_container(Some(&ContainerState::Starting), &ContainerSeen::Starting, NOW);
        assert_eq!(decision, Decision::Keep(ContainerState::Starting));
    }

    #[test]
    fn a_start_that_the_daemon_did_not_see_end_is_taken_up() {
        let seen = ContainerSeen::Running(init());
        let decision = decide_container(Some(&ContainerState::Starting), &seen, NOW);
        assert_eq!(decision, Decision::Keep(ContainerState::Running { init: init(), since: NOW }));
    }
}
