//! Round trips, hostile frames, and encodings that must not change within a version.

use alloc::string::ToString;
use alloc::vec;

use super::*;

fn bytes<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out).unwrap();
    out
}

#[test]
fn frames_are_taken_one_by_one_and_only_whole() {
    let first = Request::Start {
        name: "demo".to_string(),
    };
    let mut stream = bytes(&first);
    stream.extend(bytes(&Request::List));
    let mut buffer = Vec::new();
    let mut got = Vec::new();
    for byte in stream {
        buffer.push(byte);
        while let Some(message) = decode::<Request>(&mut buffer).unwrap() {
            got.push(message);
        }
    }
    assert_eq!(got, [first, Request::List]);
    assert!(buffer.is_empty());
}

#[test]
fn hostile_frames_are_errors() {
    let mut huge = u32::MAX.to_le_bytes().to_vec();
    assert_eq!(
        decode::<Request>(&mut huge),
        Err(WireError::TooLong(u32::MAX as usize))
    );
    // No such variant; a variant with trailing bytes; a string that claims more than there is.
    for body in [&[0x7f][..], &[0, 0], &[2, 200, b'a']] {
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        assert_eq!(decode::<Request>(&mut frame), Err(WireError::Malformed));
    }
}

#[test]
fn greetings_tell_versions_apart() {
    let mut hello = Hello::new(Role::Worker).to_bytes();
    assert_eq!(Hello::check(&hello, Role::Worker), Ok(()));
    assert_eq!(
        Hello::check(&hello, Role::Daemon),
        Err(WireError::NotControl)
    );
    hello[8] = 9;
    let error = Hello::check(&hello, Role::Worker).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("has 6") && text.contains("has 9"), "{text}");
    hello[0] = 0;
    assert_eq!(
        Hello::check(&hello, Role::Worker),
        Err(WireError::NotControl)
    );
}

#[test]
fn encodings_are_frozen() {
    assert_eq!(
        Hello::new(Role::Cli).to_bytes(),
        *b"MVcontrl\x06\0\0\0\x01\0\0\0"
    );
    assert_eq!(
        bytes(&Request::Stop {
            name: "a".to_string(),
            starts_again: true
        }),
        [4, 0, 0, 0, 3, 1, b'a', 1]
    );
    assert_eq!(
        bytes(&Request::Wait {
            name: "a".to_string(),
            until: Until::State(VmState::Paused)
        }),
        [5, 0, 0, 0, 11, 1, b'a', 1, 3]
    );
    assert_eq!(bytes(&Request::Events), [1, 0, 0, 0, 12]);
    assert_eq!(
        bytes(&Request::Detach {
            name: "a".to_string(),
            device: "b".to_string()
        }),
        [5, 0, 0, 0, 14, 1, b'a', 1, b'b']
    );
    assert_eq!(
        bytes(&Response::Status(VmStatus {
            id: Some(300),
            name: "a".to_string(),
            state: VmState::Running,
            reason: "b".to_string(),
            vcpus: 2,
            memory: 128,
            cpu_percent: Some(1.0),
            uptime_ms: None,
            stop_asked_ms: Some(3),
            reboot_asked_ms: None,
            pause_asked: true,
        })),
        [
            22, 0, 0, 0, 2, 1, 0xac, 2, 1, b'a', 2, 1, b'b', 2, 0x80, 1, 1, 0, 0, 0x80, 0x3f, 0, 1,
            3, 0, 1
        ]
    );
    assert_eq!(bytes(&WorkerCommand::PowerButton), [1, 0, 0, 0, 4]);
    assert_eq!(
        bytes(&WorkerCommand::Attach {
            name: "a".to_string(),
            device: DeviceTable::Nic("b".to_string()),
            files: 2
        }),
        [7, 0, 0, 0, 6, 1, b'a', 1, 1, b'b', 2]
    );
    assert_eq!(
        bytes(&WorkerCommand::Connected {
            request: 1,
            files: 0
        }),
        [3, 0, 0, 0, 9, 1, 0]
    );
    assert_eq!(
        bytes(&WorkerEvent::Connect {
            request: 1,
            port: 80
        }),
        [3, 0, 0, 0, 7, 1, 80]
    );
    assert_eq!(
        bytes(&WorkerEvent::Ready {
            partition: 7,
            devices: vec!["a".to_string()]
        }),
        [5, 0, 0, 0, 0, 7, 1, 1, b'a']
    );
    assert_eq!(
        bytes(&WorkerEvent::State {
            state: VmState::IoStalled,
            reason: "x".to_string(),
            is_held: true
        }),
        [5, 0, 0, 0, 1, 7, 1, b'x', 1]
    );
    assert_eq!(
        bytes(&WorkerEvent::Ended {
            cause: EndCause::Failed,
            reason: "x".to_string()
        }),
        [4, 0, 0, 0, 3, 4, 1, b'x']
    );
}

#[test]
fn states_have_distinct_names() {
    for (i, a) in VmState::ALL.iter().enumerate() {
        assert_eq!(bytes(a), vec![1, 0, 0, 0, i as u8]);
        for b in &VmState::ALL[i + 1..] {
            assert_ne!(a.name(), b.name());
        }
    }
}
