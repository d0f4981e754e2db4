"""The processes between publishers and consumers.

       clients                       brokers                      disk

    ┌───────────┐  requests   ┌─────────────────┐ write, sync
    │ Publisher │ ──────────▶ │ PublisherBroker │ ───────────▶ Queue.json
    │ Consumer  │ ◀────────── └─────────────────┘                  │
    └───────────┘   answers     │    ▲       │                     │
       ▲     ▲      pushes      │    │ assign│ committed           │ fold
       │     │                  │    │ lend  ▼                     │
       │     │          what is │  ┌────────────────┐              │
       │     │      not read at │  │ ConsumerBroker │ ◀────────────┘
       │     │             once ▼  └────────────────┘
       │     │            ┌────────┐     │
       │     └─────────── │ Router │ ◀───┘ what may have been lost, again
       │                  └────────┘
       │    pidfds      ┌──────────┐
       └─────────────── │ Registry │ ─── who has died ──▶ PublisherBroker
                        └──────────┘
                        ┌───────────┐
     ConsumerBroker ──▶ │ Compactor │ ─── a smaller file ──▶ PublisherBroker
                        └───────────┘

Whatever happens is a record of Queue.json before anybody acts on it: a publish, a registration, an assignment, an
outcome, a death. The state of the queue is a fold over these records, so a broker that starts anew knows what its
predecessor knew. Four rules carry the rest; without any one of them, a kill at the wrong moment loses a task, runs one
twice, or leaves one lying:

* Upwards, requests are numbered by session and the writer takes only the next one (requests.py). What is not
  acknowledged is sent again whenever the writer or the Router starts anew.
* Downwards, the assignments of a consumer are numbered in the log, and it takes each number once. So the scheduler may
  push everything unfinished again as often as it likes.
* A scheduler begins with a barrier in the log; the writer drops what earlier incarnations ask for behind it.
* A task is given out again only after the log says that its consumer is gone, and that is written only after the
  kernel has said so, behind everything that the consumer had sent.

One short cut: while nothing is ready, the scheduler lends idle consumers to the writer, who then assigns new tasks to
them in the commit that publishes them. All four rules hold for these assignments as well.

Clients of other processes knock at the Registry's door, are handed the mailboxes of the brokers, and are clients like
all from then on (door.py). They outlive the brokers: to whoever hosts the queue next they repeat what is not
acknowledged, and the rules above see to the rest.

Whoever retries, cancels, purges or pauses asks the ConsumerBroker, which alone knows what is about to be handed out,
and is answered once what it has decided is on disk (wishes.py).

The log is shortened beside all that: the Compactor writes a file that says the same, the writer goes over to it between
two commits, and the scheduler reads on there with what it knows (compactor.py).

No broker ever waits for another: they send in a circle (post.py).
"""
