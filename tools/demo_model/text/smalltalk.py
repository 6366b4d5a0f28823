"""Greetings and small talk, and questions about the model itself."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual
from .lexicon import person

# (training phrasings, held-out phrasings, replies)
_INTENTS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "[Hi|Hello|Hey|Hey there|Hello there|Hi there|Howdy|Greetings][!|.|]",
            "[Hi|Hello|Hey][,| ][assistant|friend|you]!",
        ),
        ("Hello hello!", "Oh hi there!", "Hi, hello!"),
        ("Hello! How can I help you?", "Hi! What can I do for you?"),
    ),
    (
        (
            "[A |Very |And ]good [morning|evening|afternoon][!|.| to all!]",
            "[Well|Oh|Hello], good [morning|evening|afternoon][!|.]",
            "Good [morning|evening|afternoon][!|.|]",
            "Good [morning|evening|afternoon][ to you|, assistant|, friend]!",
        ),
        ("A very good morning!", "Good evening, my friend!", "Well, good afternoon to you!"),
        ("Good day to you! How can I help?", "Good day! What can I do for you?"),
    ),
    (
        (
            "[So|And|Hello], how are you[ doing|]?",
            "[How do you do|How is your day|How goes it|What is up][ today|]?",
            "How are you[ today| doing| doing today| now|]?",
            "How is it going[ today|]?",
            "How do you feel[ today|]?",
            "Are you [well|fine|OK]?",
        ),
        ("How are you this morning?", "So how do you do today?", "How is it all going?"),
        ("I am doing well, thank you! How are you?", "Very well, thanks for asking. And you?"),
    ),
    (
        (
            "[Thanks|Thank you][!|.| very much!| so much!| a lot!|]",
            "[Great|OK|Perfect|Nice|Good], [thanks|thank you][!|.]",
            "That [was helpful|helped], [thanks|thank you].",
        ),
        ("Many thanks, thank you!", "Wonderful, thank you very much.", "OK, thanks a lot for that!"),
        ("You are welcome!", "You are welcome! Is there anything else?"),
    ),
    (
        (
            "[Bye|Goodbye|Bye bye|See you|See you later|Farewell][!|.|]",
            "I [have to|must] go[ now|]. [Bye|Goodbye]!",
            "Good night[!|.|]",
        ),
        ("Well, goodbye then!", "OK bye, see you!", "I must leave now, goodbye."),
        ("Goodbye! Have a nice day.", "See you soon! Take care."),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "[Introduce|Describe] yourself[.|, please.]",
            "Tell me about yourself.",
            "Who am I talking to?",
            "Do you have a name?",
            "What model are you?",
            "Which model is this?",
            "[Say|Give me|I want to know|May I know|Do you know] [your name|who you are][.|?]",
            "[So|And] [who are you|what is your name][ now|]?",
            "[Your name|Name|Who][?|, please.]",
            "What [should|can|do] I call you?",
            "What [are you|sort of program are you|is this]?",
        ),
        (
            "And who might you be?",
            "Please tell me your name.",
            "Can you introduce yourself?",
            "What kind of model are you?",
        ),
        ("I am Penstock Demo, a tiny language model trained on generated text.",),
    ),
    (
        (
            "What can you do?",
            "What can you help [me |]with?",
            "How can you help[ me|]?",
            "What are you able to do?",
            "What are your skills?",
            "What should I ask you?",
            "Help!",
            "Can you help me?",
            "[Say|Show me|I want to know] what you can do.",
            "[Which|What] [questions|tasks] can you [answer|do]?",
            "What [can|may] I [say|do|try][ here|]?",
        ),
        ("What things can you do?", "How could you help me?", "What can I ask you?"),
        (
            "I can do small sums, convert units, sort and count, recall a few facts, "
            "read a short text, answer in JSON and call tools.",
        ),
    ),
    (
        (
            "Who [made|built|created|trained|wrote] you?",
            "Where do you come from?",
            "How were you [made|trained|built|created]?",
            "[Say|I want to know|Do you know] who [made|trained|built] you[.|?]",
            "Who is your [maker|author]?",
        ),
        ("Tell me who made you.", "By whom were you trained?", "How did they make you?"),
        ("I was trained from nothing by the scripts in the Penstock repository.",),
    ),
    (
        (
            "Are you [a human|human|a person|a robot|alive|real|a machine|an AI|a computer]?",
            "[You are|I think you are|So you are] "
            "[a robot|a human|a machine|a person|an AI|real][, right?|.|?]",
            "[Is this|Am I talking to] [a human|a person|a robot|a machine]?",
            "[Say|I want to know], are you [a human|a machine|real|a computer]?",
        ),
        (
            "Are you really a human?",
            "Tell me, are you a robot or a person?",
            "You are a machine, are you not?",
        ),
        ("I am a small computer program, not a person.",),
    ),
    (
        (
            "Tell me a joke[.|, please.|]",
            "Do you know [a joke|any jokes]?",
            "Make me laugh[.|!]",
            "Say something funny.",
            "[Give me|I want to hear|One more|Another] [a |]joke[!|.|, please.]",
            "[Joke|Jokes][!|?| please]",
            "I [want|need] a joke.",
        ),
        ("Can you tell me a good joke?", "A joke, please!", "Do you have a joke for me?"),
        (
            "Why did the tokens stay in line? Because the cache told them to.",
            "Why was the clock tired? It had been running all day.",
        ),
    ),
    (
        (
            "[I am|I'm|I feel] [sad|tired|unhappy|lonely|bored|angry][ today| now|][.|]",
            "[I am|I'm|I feel] [so|very|a bit] [sad|tired|unhappy|lonely|bored|angry][ today| now|][.|!]",
            "[Today|Now|Again] I [am|feel] [very |so |][sad|tired|unhappy|lonely|bored|angry].",
            "I have [had a bad day|been sad|been so tired|been unhappy][.|]",
        ),
        ("Oh, I am so sad today.", "Today I feel really tired.", "I have been feeling lonely."),
        ("I am sorry to hear that. I hope your day gets better.",),
    ),
    (
        (
            "[I am|I'm|I feel] [happy|great|good|fine|well|excited][ today| now|][.|!|]",
            "[I am|I'm|I feel] [so|very|really] [happy|great|good|fine|excited][ today| now|][.|!|]",
            "[Today|Now] I [am|feel] [very |so |][happy|great|good].",
            "I have [had a good day|been happy|been very well][.|!]",
            "[Great|Good|Fine], [thanks|thank you]. And you?",
        ),
        ("Oh, I am so happy today.", "Today I feel really great!", "I have been feeling very good."),
        ("I am glad to hear that!",),
    ),
    (
        (
            "[So|And|Say], [what is|do you have] your favourite [colour|food|film|song|book|animal]?",
            "[Which|What] [music|food|colour|book] do you [like|enjoy]?",
            "Do you [like|love|enjoy] [music|tea|coffee|books|films|cats|dogs|sport|pizza]?",
            "What is your favourite [colour|food|film|song|book|animal]?",
            "Do you have [feelings|friends|hobbies|a body|a family]?",
        ),
        (
            "Tell me, do you enjoy music?",
            "So what is your own favourite food?",
            "Do you really have feelings?",
        ),
        ("I am only a program, so I have no likes of my own.",),
    ),
    (
        (
            "[I think you|You] are [so|very] [great|smart|clever|nice|funny|helpful|kind][!|.]",
            "[Oh|Wow], [you are|that is] [great|smart|clever|nice][!|.]",
            "You are [great|smart|clever|nice|funny|helpful|kind][!|.|]",
            "[Well done|Good job|Good work|Nice work|Excellent][!|.|]",
            "I like you[.|!]",
        ),
        ("I think you are really smart!", "Oh well done, good work!", "You are so very helpful."),
        ("Thank you, that is kind of you!",),
    ),
    (
        (
            "[I think you|You] are [so|very] [stupid|wrong|bad|slow|boring|useless][!|.]",
            "[Oh|No], [you are|that is|that was] [wrong|bad|stupid|boring][!|.]",
            "You are [stupid|wrong|bad|slow|boring|useless][!|.|]",
            "That [is|was] [wrong|bad|not right|a mistake][!|.|]",
            "I do not like you[.|!]",
        ),
        ("I think you are really wrong!", "Oh no, that was so bad.", "That is just wrong."),
        ("I am sorry. I am a very small model and I make mistakes.",),
    ),
)


def make(source: Source) -> Exchange:
    """A greeting, a thank-you, a question about the model, or an introduction by name."""
    if source.chance(0.12):
        name = person(source)
        question = source.phrase(
            (
                "[Good day|Good morning|Good evening][,|!] [my name is|this is] {name}[.|!]",
                "[You can call|Call|Please call] me {name}[.|!]",
                "{name} [here|speaking][.|!]",
                "My name [here |]is {name}[, hi|, hello|][.|!]",
                "[Hi|Hello|Hey][,|!] [I am|I'm|my name is|this is|it is] {name}[.|!|]",
                "[I am|I'm] {name}[.|, nice to meet you.]",
            ),
            ("Hello there, {name} is my name.", "Good day, I am {name}!", "They call me {name}, hello!"),
            name=name,
        )
        return ask(question, f"Nice to meet you, {name}! How can I help you?", Check("all", (name,)))
    train, held_out, replies = source.rng.choice(_INTENTS)
    question = source.phrase(train, held_out)
    return ask(
        casual(source, question) if source.chance(0.3) else question,
        source.rng.choice(replies),
        Check("exact", replies),
    )
