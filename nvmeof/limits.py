"""Every bound in one place, each with its reason. Sizes are in bytes and times in seconds unless the name says."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- protocol -------------------------------------------------------------------------------------------------------

MDTS_BYTES = 1 * MIB
"""Largest transfer of one command. Linux splits at this; 1 MiB is what it would use for a large request anyway."""

IN_CAPSULE_BYTES = 128 * KIB
"""In-capsule data of an I/O command (IOCCSZ). A write that fits needs no R2T, so no round trip before its data."""

ADMIN_IN_CAPSULE_BYTES = 8 * KIB
"""Admin and Fabrics commands may always carry this much (NVMe/TCP Transport 1.0, section 3.3.2)."""

MAXH2CDATA_BYTES = 256 * KIB
"""Largest H2CData payload a host may send to us: half the scratch, so that a whole PDU often lies in it."""

MAXH2CDATA_BYTES_MIN = 4096
"""The smallest MAXH2CDATA a controller may announce (NVMe/TCP Transport 1.0, figure 28)."""

ALIGNMENT_DWORDS_MAX = 31
"""Largest HPDA or CPDA, 0's based dwords: PDO is one byte."""

SCRATCH_BYTES = 512 * KIB
"""Where PDUs arrive. 128 KiB writes at depth 16: 38,000 a second with 256 KiB, 54,000 with 512 KiB or more, because
more payloads lie in it whole and go to the volume without landing elsewhere first."""

HANDSHAKE_SCRATCH_BYTES = 16 * KIB
"""The part of it that is used before Connect, so that who only knocks makes no more resident. A Connect is 1,100."""

SLAB_BYTES = MDTS_BYTES + 64 * KIB
"""One lease: a whole MDTS plus the headers around it."""

SLABS_IDLE_MAX = 32
"""Leases kept for reuse when nothing is in flight (34 MiB of address space, resident only where touched)."""

OUTPUT_BYTES_MAX = 4 * MIB
"""Unsent output, plus reads waiting for the disk, at which a connection stops taking commands."""

R2T_BYTES_MAX = 4 * MIB
"""Write payload a connection has asked for and not yet finished; further writes wait for their R2T."""

HANDSHAKE_SECONDS = 10.0
"""From accept to the Connect command. Linux gives ICResp 10 s."""

PDU_SECONDS = 60.0
"""From the first byte of a PDU to its last, and from an R2T to its data. Twice Linux's I/O timeout."""

OUTPUT_SECONDS = 60.0
"""A peer that takes nothing of our output for this long is gone."""

TCP_KEEPALIVE_IDLE_SECONDS = 30
TCP_KEEPALIVE_INTERVAL_SECONDS = 10
TCP_KEEPALIVE_PROBES = 3
"""A peer whose machine is gone is noticed within a minute even where NVMe keep-alive is off (Linux's default: 2 h)."""

TERMINATE_SECONDS = 10.0
"""From sending a TermReq until the connection is dropped if the peer does not close it (the specification: 30 s)."""

# --- engine ---------------------------------------------------------------------------------------------------------

VOLUME_BLOCK_SIZES = (512, 4096)
"""What NVMe hosts use; the kernel's page, and so a torn page, is no smaller than the larger."""

VOLUME_THREADS = 8
"""Threads of a volume for reads and writes that would wait. A hop costs 23-34 us of a core, so more would not be
faster: 8 keep a disk of 100 us latency at 80,000 reads a second, more than the hops allow."""

CLEAR_BYTES_MAX = 256 * MIB
"""Deallocate and Write Zeroes go to a thread in pieces of this: punching 256 MiB of cached data takes 10-20 ms, and a
TiB of holes is 4,096 hops (0.4 s)."""

RANGE_LOCK_GRANULE_SHIFT = 20
"""Operations off the loop exclude each other by MiB: a whole-MDTS transfer takes two granules, a clearing piece 257."""

WRITE_STALL_SECONDS = 0.002
"""A write on the loop that took longer has waited for something. On ext4: 4 KiB 1.3 us at the median, 25 us at p99.9;
1 MiB 42 us; over 2 ms is dirty throttling or a journal commit (30 of 1.1 million beside a busy fdatasync)."""

WRITE_STALL_THREAD_SECONDS = 0.008
"""The same for a write in a thread, whose clock also counts waiting for the interpreter (switch interval 5 ms)."""

WRITES_OFF_LOOP = 32
"""After a stall, so many writes in a row must be quick in threads before they return to the loop. That is a
millisecond of hops when the stall was only the scheduler's doing, which the clock cannot tell."""

VERIFY_PIECE_BYTES = 1 * MIB
"""A Verify of a volume without checksums reads this much at a time: one MDTS."""

SIDECAR_BYTES_MAX = 4096
"""A sidecar is 160 bytes; more is some other file."""

POOL_STRIPES_OFF_LOOP = 4
"""A stripe is written on the loop, when it is full, while the page cache takes it at once (WRITE_STALL_SECONDS). Every
call that lets go of the interpreter lock costs some 10 us when another thread wants it, and a stripe has 13. Beside a
limit of 320 us, 1 MiB writes take 500 us on the loop at once, 580 in a task on the loop, 1,670 with a thread for it and
2,600 with four. After a stall, so many stripes in a row must be quick in threads before they return to the loop."""

POOL_STRIPES_IN_FLIGHT_MAX = 8
"""Stripes being written at a time, about 1 MiB of data each: enough to keep two threads busy, 12 MiB of memory."""

POOL_RESERVE_SEGMENTS = (4, 2, 0)
"""Free segments that user writes, the cleaner, and a commit of the map leave alone. The cleaner's two take what it
moves before a commit frees the originals; the commit's own records need one and a half at most."""

POOL_COMMIT_BYTES = 256 * MIB
"""The map is committed after this much log, so an opening rolls forward no more than that ..."""

POOL_COMMIT_PAGES_SHARE = 4
"""... and when its dirty pages, 4 KiB each, would fill a quarter of a segment's stream: they must fit the reserve."""

POOL_CLEAN_BELOW_PERCENT = 10
"""The cleaner runs when fewer segments than this are free (and the reserve)."""

POOL_NAMESPACES_MAX = 256
"""Namespaces of a pool: their keys fit the 32 KiB key table, their descriptions one root record."""

POOL_STRIP_BYTES_MAX = 260 * KIB
"""Longest strip. Four of these hold eight records of 128 KiB with their headers: a 1 MiB write is one stripe."""

POOL_SEGMENT_BYTES = 16 * MIB
"""Segment of one member: 63 full strips; a pool of 4 GiB has 64 of them."""

POOL_ROOT_BYTES_MAX = 4 * MIB
"""Largest root we believe: 256 namespaces of the largest size there is are 1 MiB of JSON."""

POOL_MAP_CHUNKS_MAX = 12288
"""Map table chunks of all namespaces, 8 GiB each: 96 TiB. Their entries are in the root, at most 9 bytes each after
compression, and the root is one record of 128 KiB."""

POOL_RECORDS_CACHED = 32
"""Decoded records kept for reads that take 128 KiB records in small pieces: 4 MiB at most."""

POOL_STRIPES_REBUILT_KEPT = 4
"""Stripes rebuilt for a read and kept, 1 MiB each: without a member every record of a stripe that touches it would
rebuild the whole stripe again."""

POOL_THREADS = 8
"""Threads of a pool for what waits: syncs, cold reads. Six members that sync at once answer a 4 KiB FUA after 0.7 ms,
32 of them together after 1.0 (fdatasync: 0.5); with four threads 1.0 and 2.2."""

POOL_PACKERS = 2
"""Writes that are packed in threads at a time, as many as there are cores here: 1 MiB writes of text at depth 8 with
zstd levels 1, 3 and 6 reach 492, 336 and 153 MiB/s with two; 313, 212 and 87 with one, which is what the loop does."""

POOL_SCRUB_SAVE_SEGMENTS = 16
"""Segments between two saves of the scrub's or rebuild's place."""

POOL_SCRUB_NAP_SECONDS = 0.1
"""A throttled scrub or rebuild looks this often whether it is to stop, or has another rate."""

POOL_MEDIA_ERRORS_KEPT = 256
"""Media errors kept for status and the error log; the count goes on."""

# --- target -----------------------------------------------------------------------------------------------------------

IO_QUEUES_MAX = 128
"""I/O queues a controller grants (Set Features, Number of Queues)."""

QUEUE_ENTRIES_MAX = 1024
"""CAP.MQES + 1. Linux's largest --queue-size."""

ADMIN_QUEUE_ENTRIES_MAX = 128
"""Largest admin queue; Linux asks for 32."""

NAMESPACES_MAX = 1024
"""Largest NSID (Identify Controller NN); the active namespace list of one command holds this many."""

CONTROLLERS_PER_SUBSYSTEM_MAX = 2047
"""As many controller identifiers as one controller list (4096 bytes) holds."""

CONNECTIONS_MAX = 4096
"""Sockets of one target: 32 hosts with 128 queues each. A scratch and a slab each, resident where touched."""

VERIFY_BYTES_MAX = 32 * MIB
"""Largest Verify (VSL). A connection has four in progress at most, since each holds VERIFY_PIECE_BYTES of
OUTPUT_BYTES_MAX; a host that lost the connection waits for them when it connects again: 128 MiB, a second of one slow
disk. 65,536 blocks of 512 bytes, the most that NLB can name, are as much."""

ASYNC_EVENT_REQUESTS_MAX = 4
"""AERL + 1. More than one lets a host collect several kinds of events without a round trip."""

ERROR_LOG_ENTRIES = 64
"""ELPE + 1: entries of the error information log kept per controller."""

CC_ENABLE_TIMEOUT_UNITS = 20
"""CAP.TO and CRTO in units of 500 ms: enabling takes no time, shutdown waits for a sync."""

KEEP_ALIVE_GRANULARITY_MS = 1000
"""KAS times 100 ms: the target looks at its timers once a second."""

KEEP_ALIVE_MS_MAX = 24 * 3600 * 1000
"""A KATO beyond a day is refused as invalid: it would hold a dead host's queues for ever."""

DISCOVERY_IDLE_SECONDS = 120.0
"""A discovery controller without keep-alive is dropped after this silence (Base 2.0, section 3.1.2.3: two minutes)."""

KEY_EXPORT_BYTES_MAX = 64 * KIB
"""An export of 288 keys is 33 KiB."""

CONFIG_BYTES_MAX = 1 * MIB
"""Thousands of namespaces; a disk image given as configuration by mistake is not read whole."""

DRAIN_SECONDS = 10.0
"""From SIGTERM until connections that still have commands are dropped."""

AWAKE_SECONDS = 50e-6
"""The loop polls instead of sleeping for this long after work: waking a sleeping CPU costs 25-50 us here. 4 KiB reads:
17,000 -> 44,000 a second at depth 1, 275,000 -> 340,000 at depth 32. An idle target sleeps."""

# --- initiator --------------------------------------------------------------------------------------------------------

HOST_COPY_BYTES_MAX = 16 * KIB
"""Payloads up to this are copied behind their header; larger ones are sent from the caller's buffer."""

BULK_BYTES_MIN = 64 * KIB
"""A read of at least this, in flight, makes the socket be read in small windows so that payloads land in place: 1 MiB
reads at depth 8 take 91 us of a core each, 110 us when they go through the scratch; 128 KiB reads 20 us either way."""

BULK_WINDOW_BYTES = 4 * KIB
"""The window: a header and what happens to be behind it. 64 KiB instead costs a tenth more for 1 MiB reads."""

HOST_TRANSFER_BYTES_MAX = 1 * MIB
"""Largest command we send where MDTS allows more or anything: larger ones would only be pipelined less."""

HOST_BLOCK_SIZE_MAX = 64 * KIB
"""Largest logical block we take: LBADS of a broken controller could be 255. In use are 512 and 4096 bytes."""

HOST_READALL_BYTES = 16 * MIB
"""Piece of a file that is read whole, beside the result itself: enough commands in flight to keep a link busy."""

HOST_IO_QUEUES_MAX = 128
"""TCP connections for I/O of one controller; what our target grants. One event loop fills a core with far fewer."""

HOST_QUEUE_DEPTH_MAX = 1024
"""Commands in flight on an I/O queue: Linux's largest --queue-size."""

HOST_ADMIN_QUEUE_DEPTH = 31
"""Commands in flight on the admin queue: a queue of 32 entries, as every controller must take and Linux uses."""

HOST_ASYNC_EVENTS_MAX = 4
"""Asynchronous Event Requests kept outstanding, if AERL allows: more types of event at once hardly ever happen."""

HOST_EVENTS_KEPT_MAX = 256
"""Events kept until they are asked for. Each type is masked until its log page was read, so a queue of these means
that nobody asks; the oldest go first."""

HOST_TIMEOUT_SECONDS_MAX = 86400
"""Longest timeout that may be asked for: a day."""

KEEP_ALIVE_SECONDS_MIN = 0.5
"""Shortest keep-alive timeout: half of it must be well above the scheduling delay of a busy event loop."""

TICK_SECONDS_MAX = 1.0
"""How often a connection's time limits are looked at, or four times within the shortest of them."""

READY_POLL_SECONDS = 0.01
"""Between two looks at CSTS while a controller becomes ready or shuts down ..."""

READY_POLL_SECONDS_MAX = 0.5
"""... doubling up to this: the unit of CAP.TO."""

SHUTDOWN_SECONDS = 5.0
"""From asking for a shutdown until the controller says it is complete. Linux waits as long."""

CLOSE_SECONDS = 1.0
"""For the last queued bytes to leave before the socket is closed anyway."""

DISCOVERY_ENTRIES_MAX = 16384
"""Entries read from a discovery log: 16 MiB, far above any fabric, below what a bad count could make us allocate."""

DISCOVERY_ATTEMPTS_MAX = 10
"""Times the discovery log is read when it changes meanwhile. nvme-cli's number."""

# --- command line ---------------------------------------------------------------------------------------------------

PASSPHRASE_BYTES_MAX = 4096
"""A passphrase, or the file with it; more is some other file."""

CONTROL_BYTES_MAX = 1 * MIB
"""One line on the control socket: the status of 64 members and 256 namespaces is 100 KB, a key table in base64 44."""

CONTROL_CONNECTIONS_MAX = 16
"""Pool commands at a serving process at once. Each is a person or a script; more would be a mistake."""

CONTROL_SECONDS = 30.0
"""From connecting to the control socket to the whole request, and for a reader to take an answer."""

CONTROL_PROGRESS_SECONDS = 0.1
"""Between two lines of progress: as often as a terminal is drawn."""
