//! A network namespace of the test's own with one wire to the host, on which the kernel's firewall drops packets. Needs the
//! right to make such things (root).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::gate::Cut;

/// See the module's documentation. It is gone when dropped, with the processes in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    host: Ipv4Addr,
    inside: Ipv4Addr,
    /// Where the server listens that may be cut off.
    server: u16,
}

fn run(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().is_ok_and(|status| status.success())
}

fn must(command: &str) {
    assert!(run(command), "this needs root, iproute2 and iptables: {command}");
}

impl Namespace {
    /// Makes one with this number among those of the test process; what is inside may be cut off from `server` on the host.
    pub fn new(number: u8, server: u16) -> Self {
        let pid = std::process::id();
        let name = format!("archmesh-{pid}-{number}");
        let wire = format!("am{}-{number}", pid % 100_000);
        let net = (pid % 200 + 20) as u8;
        let (host, inside) = (Ipv4Addr::new(10, net, number, 1), Ipv4Addr::new(10, net, number, 2));
        must(&format!("ip netns add {name}"));
        let namespace = Self { name, host, inside, server };
        let name = &namespace.name;
        must(&format!("ip link add {wire} type veth peer name eth0 netns {name}"));
        must(&format!("ip addr add {host}/30 dev {wire} && ip link set {wire} up"));
        must(&format!("ip -n {name} addr add {inside}/30 dev eth0"));
        must(&format!("ip -n {name} link set eth0 up && ip -n {name} link set lo up"));
        namespace
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address of a process inside, as seen from the host.
    pub fn inside(&self) -> IpAddr {
        self.inside.into()
    }

    /// Address of the server, as seen from inside.
    pub fn server(&self) -> SocketAddr {
        (self.host, self.server).into()
    }

    /// Drops packets to or from the server, or lets them pass again.
    pub fn set(&self, cut: Cut) {
        let tables = format!("ip netns exec {} iptables -w", self.name);
        must(&format!("{tables} -F"));
        if cut.there {
            must(&format!("{tables} -A OUTPUT -p tcp --dport {} -j DROP", self.server));
        }
        if cut.back {
            must(&format!("{tables} -A INPUT -p tcp --sport {} -j DROP", self.server));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The wire ends with it.
        run(&format!("ip netns del {}", self.name));
    }
}
