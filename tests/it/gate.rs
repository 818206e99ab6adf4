//! A stretch of network between a node and its Redis that can be interrupted, in both directions or in one: bytes wait, as
//! they do while packets are dropped and sent again.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Which directions are interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// From the node to Redis.
    pub there: bool,
    /// From Redis to the node.
    pub back: bool,
}

#[derive(Debug, Default)]
struct State {
    cut: Mutex<Cut>,
    changed: Condvar,
    ended: AtomicBool,
}

impl State {
    /// Waits while a direction is interrupted.
    fn pass(&self, is_cut: fn(Cut) -> bool) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        while is_cut(*cut) && !self.ended.load(Ordering::Relaxed) {
            cut = self.changed.wait(cut).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set(&self, cut: Cut) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
        self.changed.notify_all();
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    state: Arc<State>,
}

impl Gate {
    /// Opens a way to `target`.
    pub fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(near) = stream else { continue };
                // A server that is not there looks the same from here: the connection ends.
                let Ok(far) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else {
                    continue;
                };
                let (also_near, also_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                carry(near, far, Arc::clone(&shared), |cut| cut.there);
                carry(also_far, also_near, Arc::clone(&shared), |cut| cut.back);
            }
        });
        Self { address, state }
    }

    /// Where to connect instead.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Interrupts directions, or gives them free.
    pub fn set(&self, cut: Cut) {
        self.state.set(cut);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.state.set(Cut::default());
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: Arc<State>, is_cut: fn(Cut) -> bool) {
    for stream in [&from, &to] {
        stream.set_nodelay(true).unwrap();
    }
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            state.pass(is_cut);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        state.pass(is_cut);
        // The other one may have ended already.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}
