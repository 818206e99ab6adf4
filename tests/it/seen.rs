//! What a subscriber saw, and the checker of "no duplicate, no silent gap". A publication is known by the number in it, which
//! its publisher repeats with an idempotency key until it is acknowledged: it has one place in each epoch.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::socket::Socket;

/// Epoch and offset.
pub type Place = (String, u64);

/// Epoch and offset in a message or an answer.
pub fn place_of(value: &Value) -> Place {
    let epoch = value["epoch"].as_str().unwrap_or_else(|| panic!("no epoch in {value}"));
    let offset = value["offset"].as_u64().unwrap_or_else(|| panic!("no offset in {value}"));
    (epoch.to_owned(), offset)
}

/// A part of a stream that a subscriber was told to have missed, or that lies before its first subscription.
#[derive(Debug)]
struct Told {
    epoch: String,
    from: u64,
    to: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Seen {
    /// Numbers in the publications, in order.
    pub numbers: Vec<u64>,
    /// What was told to be lost, as it was told.
    pub told: Vec<Value>,
    delivered: HashMap<Place, u64>,
    /// Offset of a number in an epoch.
    offsets: HashMap<(String, u64), u64>,
    /// What had come from after a position at which the subscriber was then told to begin afresh: it may come again.
    rewound: HashMap<Place, u64>,
    losses: Vec<Told>,
    epochs: HashSet<String>,
    last: Option<Place>,
}

impl Seen {
    /// Epoch and offset up to which everything came or was told to be lost.
    pub fn position(&self) -> Option<&Place> {
        self.last.as_ref()
    }

    /// Takes what has come of a channel.
    pub fn note_all(&mut self, socket: &mut Socket, channel: &str) {
        while socket.poll() {}
        self.note_arrived(socket, channel);
    }

    /// The same, of what has arrived already.
    pub fn note_arrived(&mut self, socket: &mut Socket, channel: &str) {
        for message in socket.drain_of(&["message", "lost"]) {
            if message["channel"] == channel {
                self.note(&message);
            }
        }
    }

    /// Takes a publication or a `lost`. Fails on a duplicate and on a gap that was not told.
    pub fn note(&mut self, message: &Value) {
        if message["type"] == "lost" {
            self.note_loss(&message["data"]);
            return;
        }
        let place = place_of(message);
        let n = message["data"]["n"].as_u64().unwrap();
        let twice = self.delivered.insert(place.clone(), n);
        assert!(twice.is_none(), "twice: {message}");
        if let Some(before) = self.rewound.remove(&place) {
            assert_eq!(before, n, "another publication than before: {message}");
        }
        let elsewhere = self.offsets.insert((place.0.clone(), n), place.1);
        let elsewhere = elsewhere.filter(|offset| *offset != place.1);
        assert!(elsewhere.is_none(), "published twice, at {elsewhere:?} before: {message}");
        if let Some((epoch, offset)) = &self.last {
            let follows = *epoch == place.0 && place.1 == offset + 1;
            assert!(follows, "a silent gap from {epoch} {offset} to {message}");
        }
        self.numbers.push(n);
        self.go_to(place);
    }

    /// Takes the answer to a `subscribe`, with or without a position to recover from.
    pub fn note_subscribed(&mut self, data: &Value) {
        let place = place_of(data);
        let recovered = data["recovered"] == true;
        let Some(last) = self.last.clone() else {
            self.lose(&place.0, 0, place.1);
            self.go_to(place);
            return;
        };
        if recovered {
            for message in data["messages"].as_array().unwrap() {
                self.note(message);
            }
            assert_eq!(
                self.last.as_ref(),
                Some(&place),
                "a wrong `recovered` from {last:?}: {data}"
            );
            return;
        }
        self.told.push(data.clone());
        self.jump(&last, place);
    }

    fn note_loss(&mut self, lost: &Value) {
        self.told.push(lost.clone());
        if lost["reason"] == "epoch" {
            let place = place_of(lost);
            match self.last.clone() {
                Some(last) => self.jump(&last, place),
                None => self.go_to(place),
            }
            return;
        }
        let (from, to) =
            (lost["from_offset"].as_u64().unwrap(), lost["to_offset"].as_u64().unwrap());
        if let Some((epoch, offset)) = self.last.clone() {
            assert!(from <= offset + 1, "a silent gap from {offset} to {lost}");
            self.lose(&epoch, from, to);
            self.go_to((epoch, to));
        }
    }

    /// Everything between two positions is told to be lost.
    fn jump(&mut self, from: &Place, to: Place) {
        if from.0 == to.0 {
            self.lose(&from.0, from.1, to.1);
        } else {
            self.lose(&from.0, from.1, u64::MAX);
            self.lose(&to.0, 0, to.1);
        }
        let again = |place: &Place, _: &mut u64| place.0 == to.0 && place.1 > to.1;
        self.rewound.extend(self.delivered.extract_if(again));
        self.go_to(to);
    }

    fn lose(&mut self, epoch: &str, from: u64, to: u64) {
        self.losses.push(Told { epoch: epoch.to_owned(), from, to });
    }

    fn go_to(&mut self, place: Place) {
        self.epochs.insert(place.0.clone());
        self.last = Some(place);
    }

    /// Fails when an acknowledged publication neither came nor was told to be lost, or came as another one.
    pub fn check(&self, acknowledged: &HashMap<Place, u64>, who: &str) {
        for (place, n) in acknowledged {
            let found = self.delivered.get(place).or_else(|| self.rewound.get(place));
            if let Some(found) = found {
                assert_eq!(found, n, "{who}: another publication at {place:?}");
                continue;
            }
            let (epoch, offset) = place;
            let covers =
                |lost: &Told| lost.epoch == *epoch && (lost.from..=lost.to).contains(offset);
            // An epoch that came and went between two others was told with their change.
            let unseen = !self.epochs.contains(epoch) && self.epochs.len() > 1;
            let told = unseen || self.losses.iter().any(covers);
            assert!(told, "{who}: number {n} at {place:?} is missing; stands at {:?}", self.last);
        }
    }
}
