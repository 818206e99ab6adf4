//! What comes from the sockets: TLS, the answers to upgrades, frames, HTTP responses.

use std::io::{self, Read};

use super::connection::Phase;
use super::framing::{self, Decoder, Item, MESSAGE_BYTES_MAX};
use super::upgrade::{Upgrade, read_response, read_upgrade};
use super::{ConnId, Driver, Ending, Event, Fleet, mask_of};
use crate::schedule::Nanos;

impl Fleet {
    pub(super) fn readable(&mut self, id: ConnId, driver: &mut dyn Driver) {
        let mut chunk = std::mem::take(&mut self.chunk);
        while let Some(connection) = self.get(id) {
            if connection.paused || matches!(connection.phase, Phase::Connecting { .. }) {
                break;
            }
            match connection.stream.read(&mut chunk) {
                Ok(0) => self.end(id, Ending::Eof, driver),
                Ok(count) => {
                    let ends = connection.read_closed;
                    self.traffic.bytes_in += count as u64;
                    if self.get(id).is_some_and(|connection| connection.is_secure()) {
                        self.decrypt(id, &chunk[..count], driver);
                    } else {
                        self.take_in(id, &chunk[..count], driver);
                    }
                    // A short read has emptied the socket; what comes later makes a new event, but for the end.
                    if count < chunk.len() && !ends {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.end(id, Ending::Failed(error.kind()), driver),
            }
        }
        self.chunk = chunk;
    }

    fn decrypt(&mut self, id: ConnId, bytes: &[u8], driver: &mut dyn Driver) {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let result =
            self.get(id).map_or(Ok(()), |connection| connection.decrypt(bytes, &mut plain));
        // Handshakes and key updates have an answer, and so has a fault.
        self.write(id, |_| ());
        self.take_in(id, &plain, driver);
        self.plain = plain;
        if let Err(what) = result {
            self.flush();
            self.end(id, Ending::Tls(what), driver);
        }
    }

    fn take_in(&mut self, id: ConnId, bytes: &[u8], driver: &mut dyn Driver) {
        let now = self.clock.now();
        let Some(connection) = self.get(id) else { return };
        let joined;
        let input = if connection.inbound.is_empty() {
            bytes
        } else {
            connection.inbound.extend_from_slice(bytes);
            joined = std::mem::take(&mut connection.inbound);
            &joined
        };
        let mut used = 0;
        loop {
            match self.step(id, &input[used..], driver, now) {
                Ok(Some(more)) => used += more,
                Ok(None) => break,
                Err(what) => return self.end(id, Ending::Protocol(what), driver),
            }
        }
        if let Some(connection) = self.get(id) {
            connection.inbound.extend_from_slice(&input[used..]);
        }
    }

    /// Takes one head, frame or response from `input`; answers its bytes.
    fn step(
        &mut self,
        id: ConnId,
        input: &[u8],
        driver: &mut dyn Driver,
        now: Nanos,
    ) -> Result<Option<usize>, &'static str> {
        let Some(connection) = self.get(id).filter(|_| !input.is_empty()) else { return Ok(None) };
        match &mut connection.phase {
            Phase::Connecting { .. } => Ok(None),
            Phase::Upgrading => match read_upgrade(input)? {
                Upgrade::Partial => Ok(None),
                Upgrade::Accepted(used, deflate) => {
                    connection.phase = Phase::Open(Decoder::new(deflate));
                    driver.event(self, id, Event::Open, now);
                    Ok(Some(used))
                }
                Upgrade::Refused(status, body) => {
                    self.end(id, Ending::Refused(status, body), driver);
                    Ok(None)
                }
            },
            Phase::Open(decoder) | Phase::Closing(decoder) => {
                let Some((item, used)) = decoder.next(input)? else { return Ok(None) };
                self.item(id, item, input, driver)?;
                Ok(Some(used))
            }
            Phase::Http => {
                let Some(response) = read_response(input)? else { return Ok(None) };
                let used = response.body.end;
                let event = Event::Response(response.status, &input[response.body]);
                driver.event(self, id, event, now);
                Ok(Some(used))
            }
        }
    }

    fn item(
        &mut self,
        id: ConnId,
        item: Item,
        input: &[u8],
        driver: &mut dyn Driver,
    ) -> Result<(), &'static str> {
        let now = self.clock.now();
        match item {
            Item::Text(place) => driver.event(self, id, Event::Message(&input[place]), now),
            Item::Deflated(place) => self.inflate(id, &input[place], driver)?,
            Item::Assembled(payload, true) => self.inflate(id, &payload, driver)?,
            Item::Assembled(payload, false) => {
                driver.event(self, id, Event::Message(&payload), now);
            }
            Item::Fragment | Item::Pong => {}
            Item::Ping(place) => {
                self.traffic.pings += 1;
                let mask = mask_of(self.traffic.pings);
                self.write(id, |out| framing::push_pong(out, &input[place], mask));
            }
            Item::Close(code) => {
                if let Some(connection) = self.get(id)
                    && matches!(connection.phase, Phase::Open(_))
                {
                    framing::push_close(&mut connection.outbound, 1000, [2, 7, 1, 8]);
                    // The server may be gone already; it gets its answer when it is there.
                    let _ = connection.flush();
                }
                self.end(id, Ending::Closed(code), driver);
            }
        }
        Ok(())
    }

    fn inflate(
        &mut self,
        id: ConnId,
        deflated: &[u8],
        driver: &mut dyn Driver,
    ) -> Result<(), &'static str> {
        let mut inflater = std::mem::take(&mut self.inflater);
        let bytes_max = MESSAGE_BYTES_MAX as usize;
        let result = match inflater.inflate_in_place(deflated, bytes_max) {
            Ok(message) => {
                self.traffic.inflated += 1;
                let now = self.clock.now();
                driver.event(self, id, Event::Message(message), now);
                Ok(())
            }
            Err(_) => Err("a compressed message that is no deflate stream"),
        };
        self.inflater = inflater;
        result
    }
}
