//! Admission of requests by state: pure, no I/O, no locks. `pod` asks here and then acts.
//!
//! Three answers and a delay: do it; it is so already; it cannot be; or wait until the running work has ended (the
//! request is kept and judged again).

use super::state::{ContainerState, Holdings, SandboxState};

/// The work that runs on a container now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Activity {
    /// None.
    Idle,
    /// The bundle is being made.
    Creating,
    /// The OCI runtime runs it.
    Starting,
    /// The stop signal was sent, or SIGKILL.
    Stopping,
    /// Its remains are being removed.
    Removing,
}

/// Requests to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum ContainerRequest {
    /// StartContainer
    Start,
    /// StopContainer
    Stop,
    /// RemoveContainer
    Remove,
}

/// Requests to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum SandboxRequest {
    /// CreateContainer
    CreateContainer,
    /// StartContainer
    StartContainer,
    /// StopPodSandbox
    Stop,
    /// RemovePodSandbox
    Remove,
}

/// The work that runs on a sandbox now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum SandboxActivity {
    /// None.
    Idle,
    /// Bring-up.
    Preparing,
    /// Tear-down.
    Stopping,
    /// The record and directories are being removed.
    Removing,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Admission {
    /// Begin it.
    Do,
    /// It is so already: answer OK.
    Already,
    /// The same work runs: answer with its result.
    Join,
    /// First stop the container at once, then judge again.
    StopFirst,
    /// Judge again when the running work has ended.
    Wait,
    /// It cannot be in this state.
    Denied,
}

/// Decides on a container.
#[must_use]
pub(in crate::sandbox) fn admit_container(
    state: &ContainerState,
    activity: Activity,
    request: ContainerRequest,
) -> Admission {
    use Admission::{Already, Denied, Do, Join, StopFirst, Wait};
    match (request, activity, state) {
        (ContainerRequest::Start, Activity::Starting, _) => Join,
        (ContainerRequest::Start, Activity::Idle, ContainerState::Created) => Do,
        (ContainerRequest::Start, Activity::Creating, _) => Wait,
        (ContainerRequest::Start, _, _) => Denied,

        (ContainerRequest::Stop, Activity::Stopping, _) => Join,
        (ContainerRequest::Stop, Activity::Creating | Activity::Starting, _) => Wait,
        (ContainerRequest::Stop, Activity::Removing, _) => Already,
        (ContainerRequest::Stop, Activity::Idle, ContainerState::Running { .. }) => Do,
        (ContainerRequest::Stop, Activity::Idle, _) => Already,

        (ContainerRequest::Remove, Activity::Removing, _) => Join,
        (ContainerRequest::Remove, Activity::Creating | Activity::Starting, _) => Wait,
        (ContainerRequest::Remove, Activity::Stopping, _) => StopFirst,
        (ContainerRequest::Remove, Activity::Idle, ContainerState::Running { .. }) => StopFirst,
        (ContainerRequest::Remove, Activity::Idle, _) => Do,
    }
}

/// Decides on a sandbox.
#[must_use]
pub(in crate::sandbox) fn admit_sandbox(
    state: &SandboxState,
    activity: SandboxActivity,
    request: SandboxRequest,
) -> Admission {
    use Admission::{Already, Denied, Do, Join, StopFirst, Wait};
    match (request, activity, state) {
        (
            SandboxRequest::CreateContainer | SandboxRequest::StartContainer,
            SandboxActivity::Idle,
            SandboxState::Ready { .. },
        ) => Do,
        (SandboxRequest::CreateContainer | SandboxRequest::StartContainer, _, _) => Denied,

        (SandboxRequest::Stop, SandboxActivity::Stopping, _) => Join,
        (SandboxRequest::Stop, SandboxActivity::Preparing, _) => Wait,
        (SandboxRequest::Stop, SandboxActivity::Removing, _)
        | (
            SandboxRequest::Stop,
            SandboxActivity::Idle,
            SandboxState::NotReady { resources: Holdings::Released, .. },
        ) => Already,
        (SandboxRequest::Stop, SandboxActivity::Idle, _) => Do,

        (SandboxRequest::Remove, SandboxActivity::Removing, _) => Join,
        (SandboxRequest::Remove, SandboxActivity::Preparing | SandboxActivity::Stopping, _) => Wait,
        (
            SandboxRequest::Remove,
            SandboxActivity::Idle,
            SandboxState::NotReady { resources: Holdings::Released, .. },
        ) => Do,
        (SandboxRequest::Remove, SandboxActivity::Idle, _) => StopFirst,
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::{Exit, Init, NotReadyCause};
    use super::*;
    use crate::model::Timestamp;

    fn running() -> ContainerState {
        ContainerState::Running { init: Init { pid: 1, start_time: 1 }, since: Timestamp(1) }
    }

    fn exited() -> ContainerState {
        ContainerState::Exited { started_at: None, exit: Exit::unknown("", Timestamp(1)) }
    }

    #[test]
    fn containers() {
        use Activity as A;
        use Admission as Ad;
        use ContainerRequest as R;
        let table = [
            (R::Start, A::Idle, ContainerState::Created, Ad::Do),
            (R::Start, A::Starting, ContainerState::Starting, Ad::Join),
            (R::Start, A::Creating, ContainerState::Creating, Ad::Wait),
            (R::Start, A::Idle, running(), Ad::Denied),
            (R::Start, A::Idle, exited(), Ad::Denied),
            (R::Start, A::Removing, exited(), Ad::Denied),
            (R::Stop, A::Idle, running(), Ad::Do),
            (R::Stop, A::Stopping, running(), Ad::Join),
            (R::Stop, A::Starting, ContainerState::Starting, Ad::Wait),
            (R::Stop, A::Idle, ContainerState::Created, Ad::Already),
            (R::Stop, A::Idle, exited(), Ad::Already),
            (R::Stop, A::Removing, exited(), Ad::Already),
            (R::Remove, A::Idle, ContainerState::Created, Ad::Do),
            (R::Remove, A::Idle, exited(), Ad::Do),
            (R::Remove, A::Idle, running(), Ad::StopFirst),
            (R::Remove, A::Stopping, running(), Ad::StopFirst),
            (R::Remove, A::Starting, ContainerState::Starting, Ad::Wait),
            (R::Remove, A::Removing, exited(), Ad::Join),
        ];
        for (request, activity, state, expected) in table {
            let got = admit_container(&state, activity, request);
            assert_eq!(got, expected, "{request:?} while {activity:?} in {}", state.name());
        }
    }

    #[test]
    fn sandboxes() {
        use Admission as Ad;
        use SandboxActivity as A;
        use SandboxRequest as R;
        let ready = SandboxState::Ready { network: None };
        let held = SandboxState::NotReady { why: NotReadyCause::MonitorLost, resources: Holdings::Held };
        let released = SandboxState::NotReady { why: NotReadyCause::Stopped, resources: Holdings::Released };
        let table = [
            (R::CreateContainer, A::Idle, ready.clone(), Ad::Do),
            (R::CreateContainer, A::Stopping, ready.clone(), Ad::Denied),
            (R::CreateContainer, A::Idle, held.clone(), Ad::Denied),
            (R::StartContainer, A::Idle, ready.clone(), Ad::Do),
            (R::StartContainer, A::Stopping, ready.clone(), Ad::Denied),
            (R::StartContainer, A::Idle, held.clone(), Ad::Denied),
            (R::Stop, A::Idle, ready.clone(), Ad::Do),
            (R::Stop, A::Idle, held.clone(), Ad::Do),
            (R::Stop, A::Idle, released.clone(), Ad::Already),
            (R::Stop, A::Stopping, ready.clone(), Ad::Join),
            (R::Stop, A::Preparing, SandboxState::Preparing, Ad::Wait),
            (R::Remove, A::Idle, released, Ad::Do),
            (R::Remove, A::Idle, held, Ad::StopFirst),
            (R::Remove, A::Idle, ready.clone(), Ad::StopFirst),
            (R::Remove, A::Stopping, ready, Ad::Wait),
        ];
        for (request, activity, state, expected) in table {
            let got = admit_sandbox(&state, activity, request);
            assert_eq!(got, expected, "{request:?} while {activity:?} in {}", state.name());
        }
    }
}
