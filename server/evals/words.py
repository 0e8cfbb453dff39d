"""Plain words for texts that are made up: those that the demo models were trained on, and no others."""

NAMES = (
    "Anna Tom Mary John Emma Jane Peter Paul Ruth Mark Henry Alice Frank Lucy George Susan Edward Kate Simon Sarah "
    "David Helen James Clara Robert Grace Thomas Rose William Edith Charles Nora Philip Ellen Martin Agnes Walter "
    "Fanny Arthur Hugh"
).split()
THINGS = (
    "lamp door chair coat hat ship wall book cup ring horse boat flag stone dress box bell tree carpet house table "
    "sword glove ribbon shoe candle bowl kite cart window"
).split()
COLOURS = "red green blue white black yellow brown grey purple orange pink gold silver scarlet".split()
PLACES = (
    "London Paris Rome Bath York Venice Egypt Spain France Kent Athens Sparta Dover Troy Wales Norway Oxford Cyprus "
    "Naples Vienna"
).split()
TRADES = (
    "baker doctor sailor farmer judge painter soldier teacher singer priest lawyer tailor miller hunter clerk "
    "merchant smith nurse gardener cook"
).split()
ANIMALS = "dog cat horse lion bear wolf sheep goat fox mouse eagle owl lamb cow duck hen deer pig swan bee".split()
FOODS = (
    "bread fish cheese honey apples milk soup rice eggs figs cake butter grapes plums nuts corn beans meat"
).split()
