use std::time::{Duration, Instant};

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn open() -> Socket {
    Socket::open(LOCAL, Some(0)).unwrap()
}

/// What arrives until there are `count` datagrams.
fn take(receiver: &mut Receiver, socket: &Socket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut all = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while all.len() < count && Instant::now() < deadline {
        let _ = receiver.receive(socket, |from, bytes| all.push((from, bytes.to_vec())));
    }
    all
}

fn send(sender: &mut Sender, socket: &Socket, datagrams: &[(SocketAddr, Vec<u8>)]) {
    let mut next = datagrams.iter();
    sender.send(socket, |out| {
        let (to, bytes) = next.next()?;
        out.extend_from_slice(bytes);
        Some(Transmit { to: *to, len: bytes.len(), alone: false })
    });
    assert!(!sender.waiting());
}

#[test]
fn a_message_carries_one_length_to_one_receiver_and_only_its_last_is_shorter() {
    let to: [SocketAddr; 2] = ["192.0.2.1:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap()];
    let queue = |datagrams: &[(usize, usize)]| -> Vec<_> {
        datagrams.iter().map(|(at, len)| Transmit { to: to[*at], len: *len, alone: false }).collect()
    };
    for (datagrams, expected) in [
        (queue(&[(0, 100)]), 1),
        (queue(&[(0, 100), (0, 100), (0, 100)]), 3),
        (queue(&[(0, 100), (0, 100), (0, 99), (0, 99)]), 3),
        (queue(&[(0, 100), (0, 101)]), 1),
        (queue(&[(0, 100), (1, 100)]), 1),
        (queue(&[(0, 4116), (0, 52), (0, 4116)]), 2),
        (queue(&[(0, 4116); 40]), SEGMENTED / 4116),
        (queue(&[(0, 10); 100]), SEGMENTS),
    ] {
        assert_eq!(run(&datagrams, SEGMENTS), expected, "{datagrams:?}");
        assert_eq!(run(&datagrams, 1), 1);
    }
}

#[test]
fn a_datagram_that_goes_alone_is_joined_by_none() {
    let to = "192.0.2.1:1".parse().unwrap();
    let queue =
        |alone: &[bool]| -> Vec<_> { alone.iter().map(|alone| Transmit { to, len: 100, alone: *alone }).collect() };
    for (alone, expected) in
        [(&[true, false, false][..], 1), (&[true, true], 1), (&[false, true, false], 1), (&[false, false, true], 2)]
    {
        assert_eq!(run(&queue(alone), SEGMENTS), expected, "{alone:?}");
    }
}

#[test]
fn the_mtu_of_an_interface_is_what_the_system_says() {
    let file = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
    assert_eq!(interface_mtu("lo").unwrap(), file.trim().parse::<usize>().unwrap());
    assert_eq!(interface_mtu("no such one").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    assert_eq!(interface_mtu(&"x".repeat(16)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn datagrams_arrive_as_they_were_cut() {
    let (a, b, c) = (open(), open(), open());
    let (mut sender, mut at_b, mut at_c) = (Sender::new(0, 0), Receiver::new(), Receiver::new());
    let mut number = 0_u32;
    for segment in [true, false] {
        sender.segment = segment;
        for lengths in [vec![1], vec![4116, 52], vec![4116; 70], vec![60; 300], vec![10, 20, 30, 30, 30, 7, 8]] {
            let datagrams: Vec<_> = lengths
                .iter()
                .enumerate()
                .map(|(at, len)| {
                    number += 1;
                    let bytes = (0..*len).map(|byte| (number as usize * 7 + byte) as u8).collect();
                    (if at % 11 == 5 { c.local() } else { b.local() }, bytes)
                })
                .collect();
            send(&mut sender, &a, &datagrams);
            for (socket, receiver) in [(&b, &mut at_b), (&c, &mut at_c)] {
                let sent: Vec<_> = datagrams
                    .iter()
                    .filter(|(to, _)| *to == socket.local())
                    .map(|(_, bytes)| (a.local(), bytes.clone()))
                    .collect();
                assert!(take(receiver, socket, sent.len()) == sent, "segment {segment}: {lengths:?}");
            }
        }
        assert_eq!(sender.segment, segment, "the kernel refused to cut");
    }
    assert_eq!((sender.refused, sender.blocked, at_b.truncated), (0, 0, 0));
}

#[test]
fn what_the_system_refuses_is_counted_and_the_rest_goes_out() {
    let (a, b) = (open(), open());
    let (mut sender, mut receiver) = (Sender::new(0, 0), Receiver::new());
    let nowhere = "255.255.255.255:9".parse().unwrap();
    let datagrams = [
        (b.local(), vec![1]),
        (nowhere, vec![2; 3]),
        (nowhere, vec![3; 3]),
        (b.local(), vec![4]),
        (b.local(), vec![5; 2]),
    ];
    send(&mut sender, &a, &datagrams);
    let got: Vec<_> = take(&mut receiver, &b, 3).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(got, [vec![1], vec![4], vec![5; 2]]);
    assert_eq!(sender.refused, 2);
}

/// Takes CAP_NET_ADMIN from this thread, if it has it.
fn be_no_network_administrator() {
    const CAP_NET_ADMIN: u32 = 12;
    // Version 3, this thread; then twice effective, permitted and inheritable, the lower 32 first.
    let (mut header, mut sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: the header and the sets have the lengths of version 3; both live for the calls.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
        sets[0] &= !(1 << CAP_NET_ADMIN);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()), 0);
    }
}

#[test]
fn a_receive_buffer_that_is_too_small_is_known_with_what_mends_it() {
    let max = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse::<usize>().unwrap();
    let thread = std::thread::spawn(move || {
        be_no_network_administrator();
        let wanted = 512 << 20;
        let buffer = Socket::open_sized(LOCAL, Some(0), wanted).unwrap().receive_buffer();
        assert_eq!(buffer, ReceiveBuffer { wanted: wanted as usize, granted: max });
        let remedy = buffer.remedy().unwrap();
        assert!(remedy.contains("`sysctl -w net.core.rmem_max=536870912`"), "{remedy}");
        // As much as everybody may have is no reason to complain.
        let all = i32::try_from(max.min(1 << 20)).unwrap();
        let buffer = Socket::open_sized(LOCAL, Some(0), all).unwrap().receive_buffer();
        assert_eq!(buffer, ReceiveBuffer { wanted: all as usize, granted: all as usize });
        assert_eq!(buffer.remedy(), None);
        // A whole device says it too.
        let device =
            crate::Device::open("soft", &crate::DeviceOptions { port: Some(0), ..crate::DeviceOptions::new(LOCAL) });
        let complains = device.unwrap().describe().contains(&format!("sysctl -w net.core.rmem_max={BUFFER}"));
        assert_eq!(complains, max < BUFFER as usize);
    });
    thread.join().unwrap();
}

#[test]
fn a_network_administrator_gets_the_receive_buffer_that_we_want() {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let capable = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    if u64::from_str_radix(capable.trim(), 16).unwrap() >> 12 & 1 == 0 {
        return eprintln!("SKIPPED: no CAP_NET_ADMIN here");
    }
    assert_eq!(open().receive_buffer(), ReceiveBuffer { wanted: BUFFER as usize, granted: BUFFER as usize });
    assert_eq!(open().receive_buffer().remedy(), None);
}

#[test]
fn as_many_datagrams_are_lost_as_were_asked_for() {
    let (a, b) = (open(), open());
    let mut receiver = Receiver::new();
    let datagrams: Vec<_> = (0..400_u32).map(|number| (b.local(), number.to_be_bytes().to_vec())).collect();
    let mut arrived = |per_million: u32, seed: u64| -> Vec<Vec<u8>> {
        let mut sender = Sender::new(per_million, seed);
        send(&mut sender, &a, &datagrams);
        let left = datagrams.len() - sender.lost as usize;
        let got: Vec<_> = take(&mut receiver, &b, left).into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(got.len(), left, "{per_million}");
        assert!(got.is_sorted());
        got
    };
    assert_eq!(arrived(0, 1).len(), 400);
    assert_eq!(arrived(1_000_000, 1).len(), 0);
    let half = arrived(500_000, 1);
    assert!((150..250).contains(&half.len()), "{}", half.len());
    let first: Vec<_> = datagrams[..half.len()].iter().map(|(_, bytes)| bytes.clone()).collect();
    assert!(half != first, "those that were not chosen arrive, not the first");
    assert!(half == arrived(500_000, 1), "one seed, one choice");
    assert!(half != arrived(500_000, 2));
    let mut loss = Loss { per_million: 10_000, state: 7 };
    let lost = (0..1_000_000).filter(|_| loss.strikes()).count();
    assert!((9_500..10_500).contains(&lost), "{lost} of 1% of a million");
}

#[test]
fn batches_grow_while_there_is_more_and_begin_with_one() {
    let (a, b) = (open(), open());
    let (mut sender, mut receiver) = (Sender::new(0, 0), Receiver::new());
    // Each longer than the one before, so that each is a message of its own.
    let datagrams: Vec<_> = (1..=60).map(|len| (b.local(), vec![0; len])).collect();
    send(&mut sender, &a, &datagrams);
    let mut counts = Vec::new();
    while let count @ 1.. = receiver.receive(&b, |_, _| {}).unwrap() {
        counts.push(count);
    }
    assert_eq!(counts, [1, 1, 2, 4, 8, 16, 16, 12]);
    send(&mut sender, &a, &datagrams[..2]);
    assert_eq!(receiver.receive(&b, |_, _| {}).unwrap(), 1);
}

#[test]
fn datagrams_are_joined_only_while_they_come_in_numbers() {
    let (a, b) = (open(), open());
    let (mut sender, mut receiver) = (Sender::new(0, 0), Receiver::new());
    let mut burst = |count: usize, receiver: &mut Receiver| -> Vec<usize> {
        let datagrams: Vec<_> = (0..count).map(|number| (b.local(), vec![number as u8; 100])).collect();
        send(&mut sender, &a, &datagrams);
        assert!(!b.is_empty());
        let (mut counts, mut next) = (Vec::new(), 0);
        let mut each = |from, bytes: &[u8]| {
            assert!(from == a.local() && *bytes == [next; 100], "datagram {next}");
            next += 1;
        };
        while let count @ 1.. = receiver.receive(&b, &mut each).unwrap() {
            counts.push(count);
        }
        assert!(b.is_empty());
        assert_eq!(usize::from(next), count);
        counts
    };
    // At first each is a message, and from the third on the kernel may join what comes.
    assert_eq!(burst(5, &mut receiver), [1, 1, 2, 1]);
    assert_eq!(burst(5, &mut receiver), [1]);
    for _ in 0..SINGLES - 1 {
        assert_eq!(burst(1, &mut receiver), [1]);
    }
    assert_eq!(burst(2, &mut receiver), [1], "still joined");
    for _ in 0..SINGLES {
        assert!(receiver.joins);
        assert_eq!(burst(1, &mut receiver), [1]);
    }
    assert!(!receiver.joins);
    assert_eq!(burst(1, &mut receiver), [1]);
    assert!(!receiver.joins);
    assert_eq!(burst(9, &mut receiver), [1, 1, 2, 4, 1], "no longer joined");
    assert!(receiver.joins);
}

#[test]
fn addresses_go_through_the_system_s_form_and_back() {
    // SAFETY: all-zero bytes are a valid value of this plain C structure.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    assert_eq!(address_of(&name), None);
    for address in ["192.0.2.7:4791", "[2001:db8::7]:4791", "[::ffff:192.0.2.7]:1"] {
        let address: SocketAddr = address.parse().unwrap();
        let len = write_address(address, &mut name);
        assert_eq!(len as usize, if address.is_ipv4() { 16 } else { 28 });
        assert_eq!(address_of(&name), Some(address));
    }
}

#[test]
fn ports_and_addresses_that_cannot_be_had_are_named() {
    let taken = open().local();
    let holder = UdpSocket::bind(taken).unwrap();
    match Socket::open(LOCAL, Some(taken.port())) {
        Err(VerbsError::PortInUse { address, .. }) => assert_eq!(address, taken),
        other => panic!("{:?}", other.map(|socket| socket.local())),
    }
    drop(holder);
    // Without a port, a taken 4791 is no reason to fail.
    let sockets = [Socket::open(LOCAL, None).unwrap(), Socket::open(LOCAL, None).unwrap()];
    assert_ne!(sockets[0].local(), sockets[1].local());
    // TEST-NET-1 is nobody's.
    assert!(matches!(Socket::open("192.0.2.1".parse().unwrap(), None), Err(VerbsError::Address { .. })));
}
