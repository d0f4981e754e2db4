"""The processes between publishers and consumers.

                     numbered requests: PublisherBroker's mailbox
    Publisher ──────────── publish ─────────▶ ┌─────────────────┐  append, fdatasync per group
    Consumer  ───────── hello, report ──────▶ │ PublisherBroker │──────────────────▶ Queue.json
    Registry  ──────────── gone ────────────▶ │   the writer    │ ◀── assign ──┐         │
                                              └──┬───────────┬──┘              │         │ read
                    acknowledgements, and        │           │ committed    ┌──┴─────────▼───┐
                    assignments once written     ▼           └── up to X ──▶│ ConsumerBroker │
    Publisher ◀════ its own channel ════ ┌────────┐                         │  the scheduler │
    Consumer  ◀════ its own channel ════ │ Router │ ◀────── push again ──── └────────────────┘
                                         └────────┘
    Registry: who is connected, and whose process has died

Nothing happens that the log does not show first. Publishes, registrations, assignments, outcomes and deaths become
records of Queue.json; the state of the queue is a fold over it, and two processes that fold the same bytes know
the same. Four rules carry the rest; each of them is there because without it a kill at the wrong moment loses a task,
runs one twice, or leaves one lying:

* Upwards, requests are numbered by session and the writer takes only the next one (requests.py). What is not
  acknowledged is sent again whenever the writer or the Router starts anew.
* Downwards, the assignments of a consumer are numbered in the log, and it takes each number once. So the scheduler may
  push everything unfinished again as often as it likes.
* A scheduler begins with a barrier in the log; the writer drops what earlier incarnations ask for behind it.
* A task is given out again only after the log says that its consumer is gone, and that is written only after the
  kernel has said so, behind everything that the consumer had sent.

No broker ever waits for another: they send in a circle (post.py).
"""
