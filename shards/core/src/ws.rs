//! The server side of RFC 6455 and of permessage-deflate (RFC 7692), without IO.
//!
//! [`handshake`] turns request heads into a 101 or a refusal, [`message`] turns received bytes into messages, and
//! [`frame`] writes frames. Nothing here knows what a message means.

pub mod close;
pub mod deflate;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod message;
