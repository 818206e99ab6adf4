//! What an error that the server answers speaks of.
//!
//! A server that answers is not left alone: the breaker counts only what PING would be answered as well. The words are looked
//! for anywhere, because servers before 7.0 put the errors of a script's commands behind words of their own.

/// Who is to blame for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The keys of this command: one has another type, or content that a script does not understand.
    Keys,
    /// The server takes no such commands now, whatever their keys: a replica, without memory, without enough replicas, without a
    /// slot, or without rights for us. It answers and goes on with others.
    State,
    /// One slot of a Redis Cluster is on its way to another node. Nothing is wrong.
    Move,
    /// The server or the connection: it loads its data, cannot write its log, is busy with a script, or is not there.
    Server,
}

const STATES: [&str; 6] = ["READONLY", "OOM", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "NOPERM"];
const SERVERS: [&str; 5] = ["LOADING", "MISCONF", "BUSY", "NOAUTH", "WRONGPASS"];

/// Reads the words of an error.
pub(super) fn of(said: &str) -> Blame {
    let has = |codes: &[&str]| words(said).any(|word| codes.contains(&word));
    match () {
        () if has(&STATES) => Blame::State,
        () if has(&SERVERS) => Blame::Server,
        () if has(&["TRYAGAIN"]) => Blame::Move,
        () if has(&["WRONGTYPE"]) => Blame::Keys,
        () if said.starts_with("ERR") && said.contains("user_script") => Blame::Keys,
        () => Blame::Server,
    }
}

/// Whether the server refused to begin. A right may be missing for the last command of a script.
pub(crate) fn has_done_nothing(said: &str) -> bool {
    matches!(of(said), Blame::State | Blame::Move) && words(said).all(|word| word != "NOPERM")
}

/// Whether the server says that it is no master.
pub(super) fn is_replica(said: &str) -> bool {
    words(said).any(|word| word == "READONLY")
}

fn words(said: &str) -> impl Iterator<Item = &str> {
    said.split(|letter: char| !letter.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_in_the_words_of_all_versions() {
        let check = |said: &str, expected| assert_eq!(of(said), expected, "{said}");
        let wrong = "Operation against a key holding the wrong kind of value";
        check(&format!("WRONGTYPE {wrong} script: 0a, on @user_script:9."), Blame::Keys);
        check(
            &format!("ERR Error running script (call to f_0a): @user_script:9: WRONGTYPE {wrong}"),
            Blame::Keys,
        );
        check("ERR user_script:12: attempt to perform arithmetic on a nil value", Blame::Keys);
        check("OOM command not allowed when used memory > 'maxmemory'. script: 0a", Blame::State);
        check(
            "ERR Error running script (call to f_0a): @user_script:3: @user_script: 3: -OOM command \
             not allowed when used memory > 'maxmemory'.",
            Blame::State,
        );
        check("READONLY You can't write against a read only replica.", Blame::State);
        check("NOREPLICAS Not enough good replicas to write.", Blame::State);
        check("MASTERDOWN Link with MASTER is down", Blame::State);
        check("CLUSTERDOWN Hash slot not served", Blame::State);
        check("NOPERM No permissions to access a key script: 0a, on @user_script:3.", Blame::State);
        check("LOADING Redis is loading the dataset in memory", Blame::Server);
        check(
            "MISCONF Errors writing to the AOF file. script: 0a, on @user_script:1",
            Blame::Server,
        );
        check("BUSY Redis is busy running a script.", Blame::Server);
        check("TRYAGAIN Multiple keys request during rehashing of slot", Blame::Move);
        check("ERR unknown command", Blame::Server);
        check("Connection reset by peer", Blame::Server);
        assert!(has_done_nothing("OOM command not allowed") && has_done_nothing("TRYAGAIN x"));
        for unknown in ["NOPERM No permissions", "BUSY Redis is busy", "Connection reset by peer"] {
            assert!(!has_done_nothing(unknown), "{unknown}");
        }
        assert!(is_replica("ERR Error running script: @user_script: 3: -READONLY You can't"));
        assert!(!is_replica("OOM command not allowed"));
    }
}
