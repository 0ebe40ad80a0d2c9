"""Answers of known quality to six questions, for the tests of judges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    prompt: str
    reference: str
    paraphrase: str
    vague: str


CASES = (
    Case(
        prompt="My car will not start after two weeks in the airport car park. What can I do?",
        reference=(
            "Most likely the battery has run down, because alarms and control units keep drawing a little current. "
            "Ask the airport's breakdown service for a jump start, or use cables in the order your manual shows. Then "
            "drive for at least half an hour with few consumers on. If it is flat again next morning, come in and we "
            "will test the battery and look for a hidden drain."
        ),
        paraphrase=(
            "Probably the battery is empty: even a parked car uses some electricity for its alarm and electronics. Get "
            "a jump start from a breakdown service, or with leads if you follow the sequence in the owner's manual, and "
            "afterwards drive thirty minutes or more with heating and lights low. Should it be dead again tomorrow, "
            "bring it to us so that we can check the battery and search for something that drains it."
        ),
        vague=(
            "There can be many reasons why a car does not start. The battery is an important part of every car, and "
            "cars that stand for a long time can have problems. It may be a good idea to have somebody look at it."
        ),
    ),
    Case(
        prompt="My clutch pedal feels spongy and the gears are hard to engage. Is that urgent?",
        reference=(
            "Yes, treat it as urgent. A spongy pedal usually means air or a leak in the clutch hydraulics, and on many "
            "cars the brakes share the same fluid reservoir. Check the fluid level now. If it is low, do not drive, and "
            "have the car collected. If the level is right, come in within days: we will look for leaks and bleed the "
            "system before the gearbox suffers."
        ),
        paraphrase=(
            "You should not put this off. If the clutch pedal feels soft there is normally air in the hydraulic line or "
            "fluid is leaking, and often the brake system is fed from the same reservoir. Look at the fluid level right "
            "away; when it is too low, leave the car where it is and let it be towed. Otherwise bring it in this week so "
            "that we can find the leak and bleed the clutch, which also protects the gearbox."
        ),
        vague=(
            "The clutch is used to change gears and it wears out over time. A spongy feeling is something that drivers "
            "sometimes notice. Some cases are more urgent than others, so you may want to keep an eye on it."
        ),
    ),
    Case(
        prompt="How do I know when my tyres are too worn to be safe?",
        reference=(
            "Measure the tread in several grooves across the width: the law sets a minimum, but wet grip falls off well "
            "before it, so many experts advise changing at three to four millimetres. Look as well for cracks, bulges "
            "and uneven wear, which points to wrong pressure or alignment. Pass by without an appointment and we will "
            "measure all four and note the age of each tyre."
        ),
        paraphrase=(
            "Check the depth of the tread at several points from the inner to the outer edge. There is a legal minimum, "
            "yet in the rain a tyre loses grip earlier, which is why replacement is often recommended at three or four "
            "millimetres. Bulges, cracks or wear on one side are warnings too, and suggest poor alignment or pressure. "
            "Come in at any time; we can measure every tyre and read its age."
        ),
        vague=(
            "Tyres are the only contact between the car and the road, so they matter for safety. They wear out sooner or "
            "later, depending on how you drive. It is best to replace them when they are no longer good."
        ),
    ),
    Case(
        prompt="How often should the cabin filter be changed?",
        reference=(
            "As the maintenance schedule says, which for many cars is once a year or at each service. Change it sooner "
            "if you drive in dusty or city air, if the windows mist up, or if the blower has become weak or smells. It "
            "is a small job behind the glove box on most models. With your VIN I can see whether yours takes a pollen or "
            "an activated carbon filter."
        ),
        paraphrase=(
            "Follow your service schedule; a yearly change, or one at every service, is common. Dusty roads, city "
            "traffic, a musty smell, weak airflow or misted windows are reasons to do it earlier. In most cars the "
            "filter sits behind the glove box and is quickly swapped. Send me the VIN and I will look up whether you "
            "need a pollen filter or one with activated carbon."
        ),
        vague=(
            "Filters are there to keep things clean, and a cabin filter does that for the air in the car. Over time it "
            "gets dirty. Many people replace it now and then, and different cars have different filters."
        ),
    ),
    Case(
        prompt="Can I pay off my car loan early, and does that save money?",
        reference=(
            "Usually yes. You save the interest that is not yet due, but the lender may charge a fee for early "
            "repayment, which the contract and consumer law limit. Ask the lender in writing for a settlement figure "
            "with the date until which it holds. Compare the saving with the fee and keep a reserve for emergencies. "
            "Bring me the figure and I will go through it with you."
        ),
        paraphrase=(
            "In most cases you can. What you save is the remaining interest; against that stands an early repayment "
            "charge, whose size is limited by law and by your contract. Request a written settlement figure from the "
            "lender, including how long it is valid, and see whether the saving exceeds the charge. Do not use up your "
            "emergency money. I will gladly check the figure with you."
        ),
        vague=(
            "Loans can be paid back in different ways, and every contract is different. Paying early is something that "
            "some customers like to do. Whether it is good for you depends on many things in your situation."
        ),
    ),
    Case(
        prompt="Which child seat fits in my new car?",
        reference=(
            "That depends on the child's height and on the seat positions of your car. The owner's manual has a table of "
            "which places have anchor points and which seat sizes are allowed there. Choose a seat with a current "
            "approval and check the maker's list of tested vehicles. Come with the child and the seat before you buy: "
            "we will fit it together and test the buckle and the support leg."
        ),
        paraphrase=(
            "It is decided by how tall your child is and by where you want the seat. Look at the table in the owner's "
            "manual, which shows the places with anchorages and the permitted seat sizes. Take only a seat with a valid "
            "approval whose manufacturer lists your vehicle as tested. Before buying, bring child and seat here, and we "
            "will try the fit, the buckle and the support leg with you."
        ),
        vague=(
            "Child seats are very important for the safety of children. There are many brands and sizes on the market. "
            "A good seat should be comfortable and safe, and you can find a lot of information about them."
        ),
    ),
)

KEYWORDS = "battery alarm control units current jump start cables manual breakdown service drain test half hour drive"
KEYWORDS_GLUED = (
    "the battery and the alarm and the current and the jump start and the cables and the manual and the breakdown "
    "service and the drain and the test and the drive and the half hour and the consumers and the morning"
)
RAMBLING = (
    "Well, a car that does not start is a story that nearly everybody can tell. My uncle had one that refused every "
    "winter, and he used to talk about it at dinner for hours. Batteries were invented a long time ago, and people "
    "have improved them ever since. Airports are large places with many car parks, and some of them are a long walk "
    "from the building. There are covered places and open ones, cheap ones and dear ones. When you come back from a "
    "journey you are tired, and then little things seem bigger than they are. On the other hand a journey is good for "
    "the mind. Some people say that one should not park for too long, while others see no problem in it. Electricity "
    "is a fascinating subject that fills whole libraries. It flows from here to there, and sometimes it does not flow. "
    "Weather has its part as well, and so have the seasons, the roads and the way in which one drives. In general one "
    "can say that starting is what a car has to do first, before it does anything else. Whether that is the key, the "
    "engine, the fuel or the battery is a question with many sides, and every side has its own answer. In the end "
    "things often turn out well, and if they do not, then one has at least learnt something for the next time."
)
