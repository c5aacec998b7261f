"""Every tensordict key that the package reads or writes.

Shapes are given after the batch axes: ``[*batch, ...]``, with one environment per batch element.

=====================  =========  =======  ====================================================================
key                    shape      dtype    meaning
=====================  =========  =======  ====================================================================
``observation``        ``[o]``    float32  raw observation
``prev_action``        ``[a]``    float32  previous action as executed (clipped); zero at an episode's start
``prev_reward``        ``[1]``    float32  previous raw reward; zero at an episode's start
``is_init``            ``[1]``    bool     first step of an episode
``trial_init``         ``[1]``    bool     first step of a trial; a memory with ``scope="trial"`` is cleared here
``episode``            ``[1]``    int64    order of the episode in its trial, from 0
``task``, ``goal``     ``[1]``    int64    indices for bookkeeping; the encoder never reads them
``("final", ...)``                         at an episode's first step: the final token of the episode before
=====================  =========  =======  ====================================================================
"""

OBSERVATION = "observation"
ACTION = "action"
PREV_ACTION = "prev_action"
PREV_REWARD = "prev_reward"
IS_INIT = "is_init"
TRIAL_INIT = "trial_init"
EPISODE = "episode"
TASK = "task"
GOAL = "goal"

# Final token x_H of the previous episode: an episode of H steps has H + 1 tokens, and no policy call sees the last one.
# Zero except in an episode's first row, and zero before an environment's first episode.
FINAL_OBSERVATION = ("final", "observation")
FINAL_ACTION = ("final", "action")
FINAL_REWARD = ("final", "reward")

# Each [1], inside "next".
REWARD = "reward"
DONE = "done"
TERMINATED = "terminated"
TRUNCATED = "truncated"
SUCCESS = "success"  # bool, whether the task was solved in this step; missing where the benchmark defines no success

CONTEXT = "context"
CURRENT = (CONTEXT, "current")  # [T, x] tokens of the current window, right-aligned
CURRENT_MASK = (CONTEXT, "current_mask")  # [T] True where there is a token
PAST = (CONTEXT, "past")  # [E-1, T, x]
PAST_MASK = (CONTEXT, "past_mask")  # [E-1, T]
PAST_ID = (CONTEXT, "past_id")  # [E-1] equal ids are equal windows, -1 where there is none
SLOT_MASK = (CONTEXT, "slot_mask")  # [E-1] True where a slot holds a window
PAST_CACHE = (CONTEXT, "past_cache")  # encoded past windows, in place of past/past_mask/past_id

WINDOW_EPISODE = ("window", "episode")  # [E-1] int64, running number of the episode in its environment, -1 for none
WINDOW_START = ("window", "start")  # [E-1] int64, first token of the window in that episode
WINDOW_CURRENT = ("window", "current")  # [1] int64, running number of the current episode

# Recurrent encoders: the rollout stores these and the state [d] under the encoder's own name.
RECURRENT = "recurrent"
RECURRENT_BEGINS = (RECURRENT, "begins")  # [1] True where the state was zero before this step
# In the context: states before the newest token (in rollouts also after it), under the same names.
STATE_BEFORE = (CONTEXT, "before")
STATE_AFTER = (CONTEXT, "after")
SEQUENCE_START = (CONTEXT, "starts")  # [1] True where a sequence starts from its given state

HIDDEN = "_hidden"  # [D], the encoder's vector
ACTOR_TOKEN = "_actor_token"  # [x], the newest token, for an actor or critic that reads it
CRITIC_TOKEN = "_critic_token"
LOC = "_loc"  # [a]
SCALE = "_scale"  # [a]
LOG_PROB = "action_log_prob"  # []
STATE_VALUE = "state_value"  # [1]
ADVANTAGE = "advantage"  # [1]
VALUE_TARGET = "value_target"  # [1]

# A critic with its own encoder: its vector, its encoded past, and the name of its recurrent state.
CRITIC_HIDDEN = "_critic_hidden"
CRITIC_CACHE = (CONTEXT, "critic_past_cache")
CRITIC_STATE = "critic_state"

LANE = "lane"  # [] int64, added by the storage: the environment that a frame comes from
