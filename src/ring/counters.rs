//! What a driver counts: plain numbers of one thread, read by whoever publishes metrics.

/// The kinds of operations, as counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OpKind {
    /// [`super::Op::Accept`].
    Accept,
    /// [`super::Op::Connect`].
    Connect,
    /// [`super::Op::Recv`].
    Recv,
    /// [`super::Op::ReceiveFrom`].
    ReceiveFrom,
    /// [`super::Op::SendTo`].
    SendTo,
    /// [`super::Op::Send`] by copy.
    Send,
    /// [`super::Op::Send`] with zero-copy asked of the kernel.
    SendZeroCopy,
    /// [`super::Op::Read`].
    Read,
    /// [`super::Op::Write`].
    Write,
    /// [`super::Op::Sync`].
    Sync,
}

impl OpKind {
    /// All of them, in the order of [`Counters::ops`].
    pub const ALL: [OpKind; 10] = [
        OpKind::Accept,
        OpKind::Connect,
        OpKind::Recv,
        OpKind::ReceiveFrom,
        OpKind::SendTo,
        OpKind::Send,
        OpKind::SendZeroCopy,
        OpKind::Read,
        OpKind::Write,
        OpKind::Sync,
    ];

    /// Its name as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            OpKind::Accept => "accept",
            OpKind::Connect => "connect",
            OpKind::Recv => "recv",
            OpKind::ReceiveFrom => "recv_from",
            OpKind::SendTo => "send_to",
            OpKind::Send => "send",
            OpKind::SendZeroCopy => "send_zero_copy",
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Sync => "sync",
        }
    }
}

/// What became of the operations of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpCounters {
    /// Operations pushed.
    pub submitted: u64,
    /// Operations that had their last event.
    pub completed: u64,
    /// Events that carried an error.
    pub failed: u64,
}

/// Running totals of a driver since it was made.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Times that the submission queue was full and had to be handed over inside a push.
    pub sq_full: u64,
    /// Turns that found completions parked in the kernel because the completion queue was full.
    pub cq_overflow: u64,
    /// Receives that found their pool empty.
    pub enobufs: u64,
    /// Sends that took less than they were given.
    pub short_sends: u64,
    /// Zero-copy sends that the kernel really sent from our pages.
    pub zero_copy_sent: u64,
    /// Zero-copy sends that it copied after all.
    pub zero_copy_copied: u64,
    /// Wake-ups by other threads that reached a sleeping core.
    pub wakes: u64,
    /// Completions that belong to no operation; anything but zero is a defect.
    pub strays: u64,
    /// One entry for each of [`OpKind::ALL`].
    pub ops: [OpCounters; OpKind::ALL.len()],
}

impl Counters {
    /// The counters of one kind.
    pub fn of(&self, kind: OpKind) -> &OpCounters {
        &self.ops[kind as usize]
    }

    /// The same, to be counted up.
    pub(super) fn of_mut(&mut self, kind: OpKind) -> &mut OpCounters {
        &mut self.ops[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_in_the_order_of_their_counters() {
        let mut counters = Counters::default();
        for (index, kind) in OpKind::ALL.into_iter().enumerate() {
            counters.of_mut(kind).submitted = index as u64 + 1;
        }
        let seen: Vec<u64> = counters.ops.iter().map(|op| op.submitted).collect();
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }
}
