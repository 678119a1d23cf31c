from pathlib import Path

from ledger.client import LedgerClient

place, new = Path("watched.token"), Path("watched.token.new")
token = place.read_text() if place.exists() else None

with (
    LedgerClient("127.0.0.1:50051") as ledger,
    ledger.watch_rewards(token=token, from_beginning=token is None) as rewards,
):
    for reward in rewards:
        print(reward.reward_id, reward.posting.amount if reward.posting else "nothing", flush=True)
        new.write_text(rewards.token)
        new.replace(place)  # whole, or not at all
