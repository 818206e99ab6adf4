//! The ring against real sockets: many connections, random sizes, ends at any moment, far too few buffers. Every byte
//! must arrive once and in order, and every operation must end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;

const BUFFERS: u16 = 4;
const BUFFER_BYTES: usize = 64;
const CONNECTIONS: usize = 48;

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Byte `position` of the stream of `connection`.
fn expected(connection: u64, position: u64) -> u8 {
    (position.wrapping_mul(31) ^ (position >> 8) ^ connection.wrapping_mul(97)) as u8
}

fn ring(completion_entries: u32) -> Ring {
    Ring::new(RingSizes { completion_entries, buffers: BUFFERS, buffer_bytes: BUFFER_BYTES })
        .unwrap()
}

#[derive(Default)]
struct Peer {
    socket: Option<TcpStream>,
    connection: Option<u64>,
    position: u64,
    receiving: bool,
    cancelled: bool,
}

/// Sends its number, then a random amount of its stream in random pieces, and ends.
fn client(address: std::net::SocketAddr, number: u64) -> u64 {
    let mut state = number ^ 0x5eed;
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(&[number as u8]).unwrap();
    let total = random(&mut state) % 40_000;
    let mut position = 0;
    while position < total {
        let piece = (1 + random(&mut state) % 3000).min(total - position);
        let bytes: Vec<u8> = (position..position + piece).map(|at| expected(number, at)).collect();
        socket.write_all(&bytes).unwrap();
        position += piece;
    }
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    // The other side closes when it has everything.
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    total
}

struct Server {
    ring: Ring,
    listener: TcpListener,
    peers: Vec<Peer>,
    state: u64,
    exhausted: u64,
    cancels: u64,
    received: Vec<Option<u64>>,
}

impl Server {
    fn receive(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.receiving = true;
        peer.cancelled = false;
        self.ring.receive(peer.socket.as_ref().unwrap().as_fd(), index as u64);
    }

    fn handle(&mut self, completion: Completion) {
        match completion.op {
            Op::Accept => {
                if let Some(accepted) = completion.accepted {
                    self.peers.push(Peer { socket: Some(accepted.into()), ..Peer::default() });
                    self.receive(self.peers.len() - 1);
                }
                if !completion.more {
                    self.ring.accept(self.listener.as_fd(), 0);
                }
            }
            Op::Receive => self.handle_receive(completion),
            Op::Cancel => {}
            op => panic!("nobody asked for {op:?}"),
        }
    }

    fn handle_receive(&mut self, completion: Completion) {
        let index = completion.key as usize;
        if let Some(mut buffer) = completion.buffer {
            assert!(buffer.len() <= BUFFER_BYTES);
            let peer = &mut self.peers[index];
            for byte in self.ring.bytes(&mut buffer).iter().copied() {
                let Some(connection) = peer.connection else {
                    peer.connection = Some(u64::from(byte));
                    continue;
                };
                assert_eq!(byte, expected(connection, peer.position), "at {}", peer.position);
                peer.position += 1;
            }
            self.ring.give_back(buffer);
            self.ring.publish_buffers();
        }
        let peer = &mut self.peers[index];
        if completion.more {
            // Now and then a receive is cancelled in full flight, as a flooder's is.
            if !peer.cancelled && random(&mut self.state).is_multiple_of(8) {
                peer.cancelled = true;
                self.cancels += 1;
                self.ring.cancel(Op::Receive, completion.key);
            }
            return;
        }
        peer.receiving = false;
        match completion.result {
            0 => {
                peer.socket = None;
                self.received[peer.connection.unwrap() as usize] = Some(peer.position);
            }
            result => {
                self.exhausted += u64::from(-result == libc::ENOBUFS);
                let known = result > 0 || [libc::ENOBUFS, libc::ECANCELED].contains(&-result);
                assert!(known, "{}", io::Error::from_raw_os_error(-result));
                self.receive(index);
            }
        }
    }
}

/// Returns how often buffers ran out, and how often the completion queue did.
fn run(completion_entries: u32) -> (u64, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..CONNECTIONS as u64)
        .map(|number| thread::spawn(move || client(address, number)))
        .collect();
    let mut server = Server {
        ring: ring(completion_entries),
        listener,
        peers: Vec::new(),
        state: 1,
        exhausted: 0,
        cancels: 0,
        received: vec![None; CONNECTIONS],
    };
    server.ring.accept(server.listener.as_fd(), 0);
    let mut completions = Vec::new();
    while server.received.contains(&None) {
        server.ring.turn(16).unwrap();
        server.ring.take_completions(&mut completions);
        if completions.is_empty() && !server.ring.has_pending() {
            server.ring.sleep().unwrap();
        }
        for completion in completions.drain(..) {
            server.handle(completion);
        }
    }
    for (client, received) in clients.into_iter().zip(&server.received) {
        assert_eq!(Some(client.join().unwrap()), *received);
    }
    assert!(server.cancels > 0);
    (server.exhausted, server.ring.overflows())
}

#[test]
fn every_byte_arrives_once_though_buffers_run_out() {
    let (exhausted, _) = run(4096);
    assert!(exhausted > 0, "four buffers are too few for 48 connections");
}

#[test]
fn every_byte_arrives_once_with_a_tiny_completion_queue() {
    run(4);
}

/// More completions become ready at once than the queue holds: the kernel keeps the others and none is lost.
#[test]
fn completion_overflow_is_counted_and_loses_nothing() {
    let mut ring = ring(4);
    let (socket, other) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (socket, listener.accept().unwrap().0)
    };
    for key in 0..100 {
        ring.poll_in(socket.as_fd(), key);
    }
    (&other).write_all(b"x").unwrap();
    let mut seen = [0; 100];
    let mut completions = Vec::new();
    while seen.contains(&0) {
        ring.turn(usize::MAX).unwrap();
        ring.take_completions(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(completion.op, Op::PollIn);
            seen[completion.key as usize] += 1;
        }
    }
    assert_eq!(seen, [1; 100]);
    assert!(ring.overflows() > 0);
}

#[test]
fn an_earlier_timeout_replaces_a_later_one() {
    let mut ring = ring(64);
    ring.arm_timeout(Duration::from_secs(3600));
    ring.turn(16).unwrap();
    ring.update_timeout(Duration::from_millis(1));
    let mut completions = Vec::new();
    loop {
        ring.turn(16).unwrap();
        ring.take_completions(&mut completions);
        if completions.iter().any(|completion| completion.op == Op::Timeout) {
            break;
        }
        if completions.is_empty() {
            ring.sleep().unwrap();
        }
    }
}

/// Each write is told, whether it comes before the sleep or during it, and none is lost between two sleeps.
#[test]
fn a_written_eventfd_ends_the_sleep() {
    const WRITES: u64 = 20_000;
    let eventfd = std::sync::Arc::new(EventFd::new().unwrap());
    let written = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut ring = ring(64);
    ring.watch(eventfd.as_fd());
    let writer = {
        let (eventfd, written) = (eventfd.clone(), written.clone());
        thread::spawn(move || {
            for _ in 0..WRITES {
                written.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                eventfd.add_one();
            }
        })
    };
    let mut taken = 0;
    let mut completions = Vec::new();
    while taken < WRITES {
        ring.sleep().unwrap();
        ring.take_completions(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(completion.op, Op::Wake);
            taken += eventfd.take().unwrap_or(0);
            if !completion.more {
                ring.watch(eventfd.as_fd());
            }
        }
    }
    writer.join().unwrap();
    assert_eq!(taken, WRITES);
}

#[test]
fn an_accepted_socket_that_nobody_takes_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut ring = ring(64);
    ring.accept(listener.as_fd(), 0);
    let mut completions = Vec::new();
    while completions.is_empty() {
        ring.turn(16).unwrap();
        ring.take_completions(&mut completions);
    }
    assert!(completions[0].accepted.is_some());
    completions.clear();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
}
