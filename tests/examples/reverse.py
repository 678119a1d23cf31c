import os

from ledger.client import Correction, LedgerClient, TooMuchToReverse

REWARD = "acdc71c6-08ad-4cd9-8c1e-3c812487b854"

with LedgerClient("127.0.0.1:50051", token=os.environ["TOKEN"]) as ledger:
    # The same key is posted once: whoever does not know what became of it asks again.
    taken = ledger.reverse_reward(REWARD, amount=5, key="case-4711", reason="credited by mistake")
    print(taken.posting.amount, "taken back by", taken.actor, "leaves", taken.posting.balance_after)

    for line in ledger.list_history("test-8-june-9"):
        if isinstance(line, Correction):
            print(line.kind, line.posting.amount, line.reason)
        else:
            print("reward", line.posting.amount if line.posting else 0, "less", line.reversed)

    try:
        ledger.reverse_reward(REWARD, amount=11, key="case-4712", reason="credited by mistake")
    except TooMuchToReverse as error:
        print(error.reason, error.left)
